package inventory

import (
	"fmt"
	"net/url"
	"strings"
)

// Override is a resource that kube-apiserver keeps in an etcd of its own.
type Override struct {
	// Resource is as in kube-apiserver's flag: /events, apps/deployments.
	Resource string
	// Endpoints are that etcd's URLs.
	Endpoints []string
}

// ParseOverrides reads the values of kube-apiserver's --etcd-servers-overrides, each
// GROUP/RESOURCE#SERVER;SERVER.
func ParseOverrides(values []string) ([]Override, error) {
	var overrides []Override
	for _, value := range values {
		resource, servers, ok := strings.Cut(value, "#")
		if strings.Count(resource, "/") != 1 || strings.HasSuffix(resource, "/") || !ok {
			return nil, fmt.Errorf("must be GROUP/RESOURCE#URL;URL such as /events#https://10.0.0.1:2379, got %q", value)
		}
		o := Override{Resource: resource, Endpoints: strings.Split(servers, ";")}
		if _, err := Secure(o.Endpoints); err != nil {
			return nil, fmt.Errorf("%s: %w", resource, err)
		}
		overrides = append(overrides, o)
	}
	return overrides, nil
}

// Secure reports whether endpoints speak TLS.
func Secure(endpoints []string) (bool, error) {
	schemes := map[string]bool{}
	for _, endpoint := range endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return false, fmt.Errorf("must be URLs such as https://127.0.0.1:2379, got %q", endpoint)
		}
		schemes[u.Scheme] = true
	}
	if len(schemes) != 1 {
		return false, fmt.Errorf("must be all http or all https, got %q", strings.Join(endpoints, ","))
	}
	return schemes["https"], nil
}
