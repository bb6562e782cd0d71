package inventory

import "strings"

// kube-apiserver's names in etcd that are not the resource's plural.
var renamed = map[string]string{
	"controllers":        "replicationcontrollers",
	"ingress":            "ingresses",
	"minions":            "nodes",
	"services/endpoints": "endpoints",
	"services/specs":     "services",
}

// split takes a key apart. Resources of kube-apiserver itself are below their
// plural alone, whatever their group is; custom resources, and the few of the
// apiservers within kube-apiserver, below group and plural.
func (s *Store) split(key string) (resource string, path []string) {
	parts := strings.Split(strings.TrimPrefix(key, s.prefix), "/")
	n := resourceParts(parts)
	path = parts[n:]
	if n == 1 {
		resource = parts[0]
	} else if strings.Contains(parts[0], ".") {
		return parts[1] + "." + parts[0], path
	} else {
		resource = parts[0] + "/" + parts[1]
	}
	if plural, ok := renamed[resource]; ok {
		resource = plural
	}
	return resource, path
}

// resourceParts says how many parts of a key name the resource: 1 or 2.
func resourceParts(parts []string) int {
	if len(parts) > 2 && (strings.Contains(parts[0], ".") || renamed[parts[0]+"/"+parts[1]] != "") {
		return 2
	}
	return 1
}
