package rewrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"

	"kekd/e2e/internal/harness"
)

// TestFailures: 5,000 objects, of which 500 in one stretch are unreadable, 2,000
// forbidden, 500 refused by a new rule and 20 behind a dead webhook. All others are
// rewritten in one run, and the list is complete.
func TestFailures(t *testing.T) {
	c := newCluster(t)
	want := map[string]int{"unreadable": 500, "forbidden": 2000, "refused": 500, "webhook": 20}
	c.create(t, "forbidden", "configmaps", want["forbidden"])
	c.create(t, "refused", "configmaps", want["refused"])
	c.create(t, "webhook", "configmaps", want["webhook"])
	c.create(t, "healthy", "secrets", 1980)
	// A value does not open under another key of etcd than its own.
	var value []byte
	for key, v := range c.stored(t) {
		if strings.HasPrefix(key, "/registry/secrets/healthy/") {
			value = v
			break
		}
	}
	for i := range want["unreadable"] {
		if _, err := c.etcd.Put(t.Context(), fmt.Sprintf("/registry/secrets/damaged/damaged-%04d", i), string(value)); err != nil {
			t.Fatal(err)
		}
	}
	c.refuse(t)
	c.breakWebhook(t)
	kubeconfig := c.limitedUser(t)
	c.rotateKey(t)

	list := filepath.Join(t.TempDir(), "failures")
	code, k := c.rewrap(t, "-o", "json", "--kubeconfig", kubeconfig, "--apiserver", c.good.URL, "--failures", list)
	if code != 1 {
		t.Fatalf("kekctl ends with %d, want 1", code)
	}
	var result struct {
		KeyID string
		Left  int
		Kinds map[string]int
	}
	if err := json.Unmarshal([]byte(k.Stdout(t)), &result); err != nil {
		t.Fatalf("%v in %s", err, k.Stdout(t))
	}
	for kind, n := range want {
		if result.Kinds[kind] != n {
			t.Errorf("%d objects are %s, want %d", result.Kinds[kind], kind, n)
		}
	}
	b, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		var f struct{ Key, Kind, Reason string }
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatal(err)
		}
		if want[f.Kind] == 0 || f.Reason == "" {
			t.Errorf("the list has %s", line)
		}
		if !listed[f.Key] && strings.HasSuffix(f.Key, "-0000") {
			t.Logf("%s: %s: %s", f.Key, f.Kind, f.Reason)
		}
		listed[f.Key] = true
	}
	for key, v := range c.stored(t) {
		under := strings.Contains(string(v), result.KeyID)
		if under == listed[key] {
			t.Errorf("%s: under the primary %v, listed %v", key, under, listed[key])
		}
	}
}

// refuse makes a rule that the objects of a namespace break.
func (c *cluster) refuse(t *testing.T) {
	t.Helper()
	api := c.kube.AdmissionregistrationV1()
	policy := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "new-rule"}}
	policy.Spec.MatchConstraints = &admissionv1.MatchResources{
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "refused"}},
		ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
			Operations: []admissionv1.OperationType{admissionv1.Update},
			Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
		}}},
	}
	policy.Spec.Validations = []admissionv1.Validation{{Expression: "false", Message: "a new rule"}}
	if _, err := api.ValidatingAdmissionPolicies().Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "new-rule"}}
	binding.Spec.PolicyName, binding.Spec.ValidationActions = "new-rule", []admissionv1.ValidationAction{admissionv1.Deny}
	if _, err := api.ValidatingAdmissionPolicyBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.awaitRefused(t, "refused", "refused-0000")
}

// breakWebhook puts a webhook that nobody serves before the objects of a namespace.
func (c *cluster) breakWebhook(t *testing.T) {
	t.Helper()
	url, fail, none, timeout := "https://127.0.0.1:1/", admissionv1.Fail, admissionv1.SideEffectClassNone, int32(1)
	_, err := c.kube.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "dead"},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "dead.example.com", ClientConfig: admissionv1.WebhookClientConfig{URL: &url},
			FailurePolicy: &fail, SideEffects: &none, TimeoutSeconds: &timeout, AdmissionReviewVersions: []string{"v1"},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "webhook"}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Update},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
			}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.awaitRefused(t, "webhook", "webhook-0000")
}

func (c *cluster) awaitRefused(t *testing.T, namespace, name string) {
	t.Helper()
	harness.Eventually(t, time.Minute, "updates in "+namespace+" fail", func(ctx context.Context) error {
		_, err := c.kube.CoreV1().ConfigMaps(namespace).Patch(ctx, name, types.MergePatchType, []byte(`{"data":{"new":"x"}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil {
			return errors.New("one was taken")
		}
		return nil
	})
}

// limitedUser returns a kubeconfig of a user who may do what rewrap needs, but not in
// the namespace "forbidden".
func (c *cluster) limitedUser(t *testing.T) string {
	t.Helper()
	const name = "limited"
	rules := []rbacv1.PolicyRule{
		{NonResourceURLs: []string{"*"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get", "patch"}},
	}
	objects := []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "patch"}}}
	api := c.kube.RbacV1()
	subjects := []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: name}}
	create := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	create(api.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}, metav1.CreateOptions{}))
	create(api.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}}, metav1.CreateOptions{}))
	create(api.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "some-configmaps"}, Rules: objects}, metav1.CreateOptions{}))
	for _, namespace := range []string{"refused", "webhook", "default", "kube-system", "kube-public", "kube-node-lease", "healthy"} {
		create(api.RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "some-configmaps"}}, metav1.CreateOptions{}))
	}
	config, err := clientcmd.LoadFromFile(c.good.Kubeconfig(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		user.Impersonate = name
	}
	path := filepath.Join(t.TempDir(), "limited")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}
