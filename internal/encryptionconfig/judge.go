package encryptionconfig

import (
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"kekd/internal/sockpath"
)

// Verdict is how bad something is.
type Verdict string

// The verdicts.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn"
	Fail Verdict = "fail"
)

// worse returns the worse one of two verdicts.
func worse(a, b Verdict) Verdict {
	order := []Verdict{OK, Warn, Fail}
	return order[max(slices.Index(order, a), slices.Index(order, b))]
}

// Problem is one thing that is not as it should be.
type Problem struct {
	// Resource is empty for a problem of the file as a whole.
	Resource string  `json:"resource,omitempty"`
	Verdict  Verdict `json:"verdict"`
	Text     string  `json:"text"`
	Remedy   string  `json:"remedy"`
}

// Resource is what happens to the objects of one resource, or of all that a wildcard
// stands for and no earlier rule names.
type Resource struct {
	Name string `json:"resource"`
	// Providers are in the order of the file: the first encrypts, all decrypt.
	Providers []string  `json:"providers"`
	Verdict   Verdict   `json:"verdict"`
	Problems  []Problem `json:"problems,omitempty"`
	// Ours reports that this kekd is the first provider.
	Ours bool `json:"ours"`
}

// Limits of a plugin's timeout within which it does what it should.
const (
	// minTimeout leaves kekd the time for one call of a slow HSM.
	minTimeout = time.Second
	// maxTimeout: every call waits that long while no plugin is there.
	maxTimeout = 10 * time.Second
)

// Files of ours that show how it should be.
const (
	encryptFile = "manifests/kube-apiserver/encryption-2-encrypt.yaml"
	finalFile   = "manifests/kube-apiserver/encryption-3-final.yaml"
)

// ResourcesOf returns the resources that kube-apiserver encrypts with the kekd of a
// socket, as the file spells them, and all problems.
func (c Config) ResourcesOf(socket string) (first []string, problems []Problem) {
	problems = c.FileProblems()
	for _, r := range c.Resources(socket) {
		if r.Ours {
			first = append(first, r.Name)
		}
		problems = append(problems, r.Problems...)
	}
	return first, problems
}

// Uses reports whether any provider of the file is the kekd of a socket.
func (c Config) Uses(socket string) bool {
	for _, r := range c.Rules {
		if slices.ContainsFunc(r.Providers, func(p Provider) bool { return c.ours(p, socket) }) {
			return true
		}
	}
	return false
}

// Resources judges each resource that the file names, in the order of the file, against
// the socket of this node's kekd.
func (c Config) Resources(socket string) []Resource {
	var out []Resource
	var seen []string
	used := c.Uses(socket)
	for _, rule := range c.Rules {
		shared := c.providerProblems(rule, socket)
		for _, name := range rule.Resources {
			r := Resource{Name: name, Verdict: OK}
			for _, p := range rule.Providers {
				r.Providers = append(r.Providers, p.String())
			}
			add := func(problems ...Problem) {
				for _, p := range problems {
					p.Resource = name
					r.Problems, r.Verdict = append(r.Problems, p), worse(r.Verdict, p.Verdict)
				}
			}
			if earlier := shadowedBy(name, seen); earlier != "" {
				add(Problem{Verdict: Warn, Text: fmt.Sprintf("never applies: the earlier rule for %q wins", earlier), Remedy: "put the more specific rule first, or remove it"})
				out = append(out, r)
				continue
			}
			seen = append(seen, name)
			add(c.order(rule, socket, used)...)
			add(shared...)
			r.Ours = len(rule.Providers) > 0 && c.ours(rule.Providers[0], socket)
			out = append(out, r)
		}
	}
	return out
}

// shadowedBy returns the earlier name that covers all of a resource, or of a wildcard;
// empty if none does.
func shadowedBy(name string, earlier []string) string {
	resource, group := splitGroup(name)
	for _, e := range earlier {
		r, g := splitGroup(e)
		if (r == "*" && g == "*") || g == group && (r == resource || r == "*") {
			return e
		}
	}
	return ""
}

// splitGroup splits PLURAL.GROUP; the core group is empty.
func splitGroup(name string) (resource, group string) {
	resource, group, _ = strings.Cut(name, ".")
	return resource, group
}

// order judges the order of a rule's providers. used reports whether any rule has this
// kekd.
func (c Config) order(rule Rule, socket string, used bool) []Problem {
	if len(rule.Providers) == 0 {
		return nil // the file is refused for it
	}
	at := slices.IndexFunc(rule.Providers, func(p Provider) bool { return c.ours(p, socket) })
	first := rule.Providers[0]
	switch {
	case at < 0:
		return []Problem{c.without(rule, socket, used)}
	case at > 0 && first.Kind == KindIdentity:
		return []Problem{{
			Verdict: Fail, Text: "identity is first: kube-apiserver writes plaintext",
			Remedy: fmt.Sprintf("once every kube-apiserver has this file, put %s first, as %s does; then run kekctl rewrap", rule.Providers[at], encryptFile),
		}}
	case at > 0:
		return []Problem{{
			Verdict: Fail, Text: fmt.Sprintf("%s is first: kube-apiserver encrypts with it, and not with this kekd", first),
			Remedy: fmt.Sprintf("put %s first on every kube-apiserver; then run kekctl rewrap", rule.Providers[at]),
		}}
	}
	if slices.ContainsFunc(rule.Providers, func(p Provider) bool { return p.Kind == KindIdentity }) {
		return []Problem{{
			Verdict: Warn, Text: "identity is left in place: kube-apiserver accepts plaintext from etcd",
			Remedy: "remove identity, as " + finalFile + " does, once kekctl inventory finds no unencrypted object",
		}}
	}
	return nil
}

// without is the problem of a rule that does not have this kekd at all.
func (c Config) without(rule Rule, socket string, used bool) Problem {
	verdict, first := Fail, rule.Providers[0]
	if used {
		verdict = Warn // it may well be meant, for this resource
	}
	for _, p := range rule.Providers {
		if p.KMS == nil {
			continue
		}
		at := c.hostSocket(p.KMS.Endpoint)
		if at == "" {
			at = p.KMS.Endpoint
		}
		return Problem{
			Verdict: verdict,
			Text:    fmt.Sprintf("this kekd is not a provider: %s is at %s, and this kekd listens at %s", p, at, socket),
			Remedy:  fmt.Sprintf("if it is meant to be this kekd, write endpoint: unix://%s, or set socket.path in kekd's configuration", socket),
		}
	}
	does := "encrypts with " + first.String()
	if first.Kind == KindIdentity {
		does = "writes plaintext"
	}
	return Problem{
		Verdict: verdict, Text: "this kekd is not a provider: kube-apiserver " + does,
		Remedy: "add kekd to the rule, as " + encryptFile + " does",
	}
}

// ours reports whether a provider is the kekd that listens at a socket.
func (c Config) ours(p Provider, socket string) bool {
	return p.KMS != nil && c.sameSocket(c.hostSocket(p.KMS.Endpoint), socket)
}

// hostSocket returns where on the host the socket of an endpoint is; empty if there is
// none.
func (c Config) hostSocket(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "unix" || u.Path == "" || strings.HasPrefix(u.Path, "/@") {
		return ""
	}
	return c.Source.hostPath(u.Path)
}

// sameSocket compares two paths on the host, where /var/run is usually a link to /run.
func (c Config) sameSocket(a, b string) bool {
	return a != "" && (path.Clean(a) == path.Clean(b) || c.Source.resolve(a) == c.Source.resolve(b))
}

// providerProblems are those of the providers of a rule, whatever their order.
func (c Config) providerProblems(rule Rule, socket string) []Problem {
	var out []Problem
	for _, p := range rule.Providers {
		if p.KMS == nil {
			continue
		}
		if c.ours(p, socket) {
			out = append(out, versionProblems(p)...)
			out = append(out, timeoutProblems(p)...)
		}
		out = append(out, c.endpointProblems(p)...)
	}
	return out
}

func versionProblems(p Provider) []Problem {
	var out []Problem
	if v := p.KMS.APIVersion; v != "v2" {
		out = append(out, Problem{
			Verdict: Fail, Text: fmt.Sprintf("%s has apiVersion %s, and kekd speaks v2", p, v),
			Remedy: "write apiVersion: v2; without it, v1 is meant",
		})
	}
	if p.KMS.CacheSize != nil && p.KMS.APIVersion == "v2" {
		out = append(out, Problem{
			Verdict: Fail, Text: fmt.Sprintf("%s has cachesize, which kube-apiserver refuses with v2", p),
			Remedy: "remove cachesize",
		})
	}
	if n := p.KMS.Name; n == "" || strings.Contains(n, ":") {
		out = append(out, Problem{
			Verdict: Fail, Text: fmt.Sprintf("the plugin's name must not be empty nor contain a colon, got %q", n),
			Remedy: "give it a name, and never change it: it is part of every stored object",
		})
	}
	return out
}

func timeoutProblems(p Provider) []Problem {
	const remedy = "write timeout: 3s, which is the default"
	switch t := p.KMS.Timeout; {
	case t <= 0:
		return []Problem{{Verdict: Fail, Text: fmt.Sprintf("%s has timeout %s, and kube-apiserver demands more than 0", p, t), Remedy: remedy}}
	case t < minTimeout:
		return []Problem{{Verdict: Warn, Text: fmt.Sprintf("%s has timeout %s, which a slow HSM may exceed", p, t), Remedy: remedy}}
	case t > maxTimeout:
		return []Problem{{Verdict: Warn, Text: fmt.Sprintf("%s has timeout %s: while kekd is away, each request that needs it waits that long", p, t), Remedy: remedy}}
	}
	return nil
}

// endpointProblems judges the form of an endpoint, whose parser in kube-apiserver takes
// much and understands it otherwise.
func (c Config) endpointProblems(p Provider) []Problem {
	fail := func(text, remedy string) []Problem {
		return []Problem{{Verdict: Fail, Text: fmt.Sprintf("%s: endpoint %q: %s", p, p.KMS.Endpoint, text), Remedy: remedy}}
	}
	const write = "write endpoint: unix:///run/kekd/kekd.sock, with three slashes"
	u, err := url.Parse(p.KMS.Endpoint)
	switch {
	case err != nil || u.Scheme != "unix":
		return fail("kube-apiserver takes unix only", write)
	case strings.HasPrefix(u.Path, "/@"):
		return fail("any process on the node can serve an abstract socket", write)
	case u.Path == "":
		return fail("kube-apiserver finds no path in it", write)
	case u.Host != "":
		return fail("with two slashes, kube-apiserver connects to "+u.Path, write)
	case u.RawQuery != "" || u.Fragment != "":
		return fail("kube-apiserver ignores what follows "+u.Path, write)
	case len(u.Path) > sockpath.MaxSize:
		return fail(fmt.Sprintf("the path has %d bytes, and the kernel allows %d", len(u.Path), sockpath.MaxSize), "choose a shorter path")
	case c.Source.hostPath(u.Path) == "":
		return fail("no hostPath volume shows it in kube-apiserver's pod",
			"mount the directory "+path.Dir(u.Path)+" into the pod, as manifests/kube-apiserver/kubeadm.yaml does")
	}
	return nil
}

// FileProblems are those of the file as a whole.
func (c Config) FileProblems() []Problem {
	out := slices.Clone(c.unread)
	names := map[string]bool{}
	for i, rule := range c.Rules {
		for j, p := range rule.Providers {
			if p.KMS == nil {
				continue
			}
			if names[p.KMS.Name] {
				out = append(out, Problem{
					Verdict: Fail, Text: fmt.Sprintf("resources[%d].providers[%d].kms.name: %q is another plugin's name already, and kube-apiserver refuses the file", i, j, p.KMS.Name),
					Remedy: "put all resources into the rule that has it, or give this one a name of its own",
				})
			}
			names[p.KMS.Name] = true
		}
		out = append(out, resourceProblems(i, rule.Resources)...)
	}
	out = append(out, c.twoNames()...)
	return append(out, c.Source.problems()...)
}

// twoNames finds a plugin under several names, as several rules must use it: it gets
// connections, probes and seeds for each.
func (c Config) twoNames() []Problem {
	rules := map[string][]string{}
	var order []string
	for _, rule := range c.Rules {
		for _, p := range rule.Providers {
			if p.KMS == nil || c.hostSocket(p.KMS.Endpoint) == "" {
				continue
			}
			at := c.Source.resolve(c.hostSocket(p.KMS.Endpoint))
			if len(rules[at]) == 0 {
				order = append(order, at)
			}
			if !slices.Contains(rules[at], p.KMS.Name) {
				rules[at] = append(rules[at], p.KMS.Name)
			}
		}
	}
	var out []Problem
	for _, at := range order {
		if names := rules[at]; len(names) > 1 {
			out = append(out, Problem{
				Verdict: Warn, Text: fmt.Sprintf("the plugin at %s has %d names: %s", at, len(names), strings.Join(names, ", ")),
				Remedy: "put all resources into one rule; keep another name only for as long as kekctl inventory finds objects under it",
			})
		}
	}
	return out
}

// resourceProblems are names of resources that kube-apiserver refuses.
func resourceProblems(i int, names []string) []Problem {
	var out []Problem
	refuse := func(name, why, remedy string) {
		out = append(out, Problem{Verdict: Fail, Text: fmt.Sprintf("resources[%d].resources: %q %s, and kube-apiserver refuses the file", i, name, why), Remedy: remedy})
	}
	for k, name := range names {
		resource, group := splitGroup(name)
		switch {
		case name == "*":
			refuse(name, "is not a wildcard", "write *. for the core group, *.GROUP for another, or *.* for all")
		case group == "*" && resource != "*":
			refuse(name, "names one resource in all groups", "write PLURAL.GROUP")
		case strings.ToLower(name) != name:
			refuse(name, "has capital letters", "write it in lower case, in the plural")
		case group == "events.k8s.io" || group == "extensions":
			refuse(name, "is in a group that stores nothing", "name the resource in the group that stores it, such as events for events.k8s.io")
		case overlaps(name, slices.Delete(slices.Clone(names), k, k+1)):
			refuse(name, "overlaps another name of the same rule", "keep one of them")
		}
	}
	return out
}

func overlaps(name string, others []string) bool { return shadowedBy(name, others) != "" }

// Verdict is the worst of all resources and of the file.
func (c Config) Verdict(socket string) Verdict {
	v := OK
	_, problems := c.ResourcesOf(socket)
	for _, p := range problems {
		v = worse(v, p.Verdict)
	}
	return v
}
