package gameday

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kekd/e2e/internal/harness"
)

const (
	// soon bounds what takes seconds on a busy machine.
	soon = 60 * time.Second
	// storedPrefix is what every encrypted value in etcd starts with.
	storedPrefix = "k8s:enc:kms:v2:kekd:"
	// kmsReady is kube-apiserver's own check of kekd.
	kmsReady = "/readyz/kms-providers"
	// kmsHealthyWithin bounds the time until kube-apiserver sees a kekd that is well again:
	// gRPC's pauses grow to two minutes.
	kmsHealthyWithin = 2*time.Minute + soon
)

// node is a control plane of one machine: what the commands of a page act upon. kekd
// runs as under systemd, kube-apiserver as a static pod.
type node struct {
	token     *harness.Token
	kekd      *harness.Kekd
	apiserver *harness.APIServer
	etcd      *clientv3.Client
	kube      kubernetes.Interface
	shell     *shell
	root      string // for what the pages name by an absolute path

	store  *harness.Etcd
	behind *harness.Kekd // another node, where the page's commands are typed; or nil
	reader *journalReader

	old    string         // the key before the primary
	sealed harness.Sealed // a value under it

	secrets int    // how many were created
	journal string // a file in place of kekd's log, if not empty
}

// newNode starts a control plane with some Secrets. All is well when it returns.
func newNode(t *testing.T, s *scene) *node {
	t.Helper()
	n := &node{token: harness.NewToken(t)}
	if s.faults {
		n.token = n.token.WithFaults(t)
	}
	if s.noKey {
		n.kekd = harness.NewSibling(t, n.token, s.options)
	} else {
		n.kekd = harness.NewKekd(t, n.token, s.options)
	}
	n.root = n.kekd.Dir()
	n.store = harness.StartEtcd(t)
	n.files(t)
	n.apiserver = harness.NewAPIServer(t, n.store, "")
	n.apiserver.Configure(t, n.encryptionConfig(), "--encryption-provider-config-automatic-reload=true")
	n.shell = newShell(t, n.root, func(args []string) (string, int) { return n.standIn(t, args) })
	n.shell.env = append(n.shell.env, "KUBECONFIG="+n.apiserver.Kubeconfig(t))
	n.places(t, n.kekd)
	n.cluster(t, n.kekd)
	if s.before != nil {
		s.before(t, n)
	}
	n.kekd.StartReady(t)
	n.apiserver.StartReady(t)
	var err error
	if n.etcd, err = clientv3.New(clientv3.Config{Endpoints: []string{n.store.Endpoint}, DialTimeout: 10 * time.Second}); err != nil {
		t.Fatalf("make the etcd client: %v", err)
	}
	t.Cleanup(func() { _ = n.etcd.Close() })
	if n.kube, err = kubernetes.NewForConfig(n.apiserver.RESTConfig()); err != nil {
		t.Fatalf("make the Kubernetes client: %v", err)
	}
	for range 3 {
		n.mustCreateSecret(t)
	}
	return n
}

// places has the shell find what the pages name.
func (n *node) places(t *testing.T, k *harness.Kekd) {
	t.Helper()
	n.shell.places = [][2]string{
		{"/run/kekd", filepath.Dir(k.Socket)},
		{"/etc/kekd/config.yaml", k.ConfigFile()},
		{"/etc/kekd/pin", n.token.PINFile},
		{"/etc/kubernetes/", n.root + "/etc/kubernetes/"},
		{"/root/kekd/", n.root + "/root/kekd/"},
		{"/var/lib/kekd", k.StateDir()},
		{"/var/log/kekd", k.AuditDir()},
		{"/usr/lib/vendor/libpkcs11.so", n.token.Module},
		{"127.0.0.1:8780", strings.TrimPrefix(k.URL, "http://")},
	}
	n.shell.program(t, "kekctl", fmt.Sprintf("exec %q --config %q \"$@\"\n", harness.KekctlBinary(t), k.ConfigFile()))
	n.shell.program(t, "etcdctl", fmt.Sprintf("exec %q --endpoints %q \"$@\"\n", harness.EtcdctlBinary(t), n.store.Endpoint))
	n.shell.program(t, "kubectl", fmt.Sprintf("exec %q \"$@\"\n", harness.KubectlBinary(t)))
}

// cluster adds the section cluster to the configurations of all nodes: etcd, kube-apiserver
// and kekd are not where kekctl would find them on a node that kubeadm set up.
func (n *node) cluster(t *testing.T, kekds ...*harness.Kekd) {
	t.Helper()
	var urls []string
	for _, k := range kekds {
		urls = append(urls, k.URL)
	}
	section := fmt.Sprintf("cluster: {etcd: {endpoints: [%q]}, apiServers: [%q], nodes: [%s], resources: [secrets, configmaps]}\n",
		n.store.Endpoint, n.apiserver.URL, strings.Join(urls, ", "))
	for _, k := range kekds {
		b, err := os.ReadFile(k.ConfigFile())
		if err != nil {
			t.Fatal(err)
		}
		text, _, _ := strings.Cut(string(b), "cluster: {")
		n.write(t, k.ConfigFile(), text+section)
	}
}

// encryptionConfig is the EncryptionConfiguration that kube-apiserver looks at.
func (n *node) encryptionConfig() string {
	return filepath.Join(n.root, "etc/kubernetes/kms/encryption.yaml")
}

// files puts manifests/kube-apiserver where docs/install.md has it, for this kekd's socket.
func (n *node) files(t *testing.T) {
	t.Helper()
	const manifests = "../../manifests/kube-apiserver"
	to := filepath.Join(n.root, "root/kekd/manifests/kube-apiserver")
	for _, dir := range []string{to, filepath.Dir(n.encryptionConfig())} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"encryption-1-prepare.yaml", "encryption-2-encrypt.yaml", "encryption-3-final.yaml"} {
		b, err := os.ReadFile(filepath.Join(manifests, name))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "/run/kekd/kekd.sock", n.kekd.Socket)
		n.write(t, filepath.Join(to, name), text)
		if name == "encryption-2-encrypt.yaml" {
			n.write(t, n.encryptionConfig(), text)
		}
	}
}

func (n *node) write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// setConfig changes kekd's configuration file; it takes effect with the next start.
func (n *node) setConfig(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(n.kekd.ConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), from) {
		t.Fatalf("the configuration lacks %q:\n%s", from, b)
	}
	n.write(t, n.kekd.ConfigFile(), strings.Replace(string(b), from, to, 1))
}

// plaintext is what a Secret holds.
func plaintext(name string) string { return "plaintext of " + name }

// createSecret stores one more Secret.
func (n *node) createSecret(ctx context.Context) error {
	name := "secret-" + strconv.Itoa(n.secrets)
	_, err := n.kube.CoreV1().Secrets(metav1.NamespaceDefault).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"value": plaintext(name)},
	}, metav1.CreateOptions{})
	if err == nil {
		n.secrets++
	}
	return err
}

func (n *node) mustCreateSecret(t *testing.T) {
	t.Helper()
	if err := n.createSecret(t.Context()); err != nil {
		t.Fatalf("create a Secret: %v", err)
	}
}

// awaitState waits until kekd gives a key the state.
func (n *node) awaitState(t *testing.T, id, state string) {
	t.Helper()
	harness.Eventually(t, soon, "key "+id+" is "+state, func(ctx context.Context) error {
		status, err := n.kekd.Status(ctx)
		for _, k := range status.KeyRing.Keys {
			if strings.Contains(k.KeyID, id) && k.State == state {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("the ring is %+v", status.KeyRing.Keys))
	})
}

// readSecrets reads every Secret that was created, past kube-apiserver's watch cache.
func (n *node) readSecrets(ctx context.Context) error {
	for i := range n.secrets {
		name := "secret-" + strconv.Itoa(i)
		s, err := n.kube.CoreV1().Secrets(metav1.NamespaceDefault).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := string(s.Data["value"]); got != plaintext(name) {
			return fmt.Errorf("%s holds %q, want %q", name, got, plaintext(name))
		}
	}
	return nil
}

// encrypted tells how many of the Secrets stand encrypted in etcd.
func (n *node) encrypted(t *testing.T) int {
	t.Helper()
	return n.stored(t, func(value string) bool { return strings.HasPrefix(value, storedPrefix) })
}

// under tells how many of the Secrets stand under the key.
func (n *node) under(t *testing.T, id string) int {
	t.Helper()
	return n.stored(t, func(value string) bool { return strings.Contains(value, n.kekd.Ring+"/"+id+"/") })
}

// stored counts the Secrets in etcd's bytes.
func (n *node) stored(t *testing.T, counts func(value string) bool) (count int) {
	t.Helper()
	resp, err := n.etcd.Get(t.Context(), "/registry/secrets/default/", clientv3.WithPrefix())
	if err != nil {
		t.Fatalf("read etcd: %v", err)
	}
	if len(resp.Kvs) != n.secrets {
		t.Fatalf("etcd holds %d Secrets, want %d", len(resp.Kvs), n.secrets)
	}
	for _, kv := range resp.Kvs {
		if counts(string(kv.Value)) {
			count++
		}
	}
	return count
}

// requireWell requires that all is as it should be, not by kekctl's word.
func (n *node) requireWell(t *testing.T) {
	t.Helper()
	n.kekd.WaitReady(t, soon)
	n.apiserver.WaitStatus(t, kmsReady, http.StatusOK, kmsHealthyWithin)
	harness.Eventually(t, kmsHealthyWithin, "a Secret is written", n.createSecret)
	harness.Eventually(t, soon, "every Secret is read", n.readSecrets)
	if got := n.encrypted(t); got != n.secrets {
		t.Errorf("%d of %d Secrets stand encrypted", got, n.secrets)
	}
}

// restartAPIServer ends kube-apiserver by SIGKILL and starts it: what it had in memory
// is gone.
func (n *node) restartAPIServer(t *testing.T) {
	t.Helper()
	n.apiserver.Kill(t)
	n.apiserver.Start(t)
}

// log is what journald has of kekd.
func (n *node) log(t *testing.T) string {
	t.Helper()
	if n.journal == "" {
		return n.kekd.Log(t)
	}
	b, err := os.ReadFile(n.journal)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// standIn does what a program of the node would.
func (n *node) standIn(t *testing.T, args []string) (out string, code int) {
	t.Helper()
	switch command := strings.Join(args, " "); {
	case command == "systemctl is-active kekd":
		if n.kekd.Running() {
			return "active\n", 0
		}
		return "inactive\n", 3
	case command == "systemctl start kekd":
		n.kekd.Start(t)
		return "", 0
	case command == "systemctl stop kekd":
		n.kekd.Stop(t)
		return "", 0
	case command == "systemctl restart kekd":
		if n.kekd.Running() {
			n.kekd.Stop(t)
		}
		n.kekd.Start(t)
		return "", 0
	case args[0] == "journalctl":
		return n.journalctl(t, args[1:])
	case command == "crictl ps -q --name kube-apiserver":
		if !n.apiserver.Running() {
			return "", 0
		}
		return "c0ffee0000000\n", 0
	case command == "crictl stop c0ffee0000000":
		// The kubelet starts it again.
		n.apiserver.Stop(t)
		n.apiserver.Start(t)
		return "c0ffee0000000\n", 0
	default:
		return "the game day has no stand-in for: " + command + "\n", 127
	}
}

// journalctl knows -u kekd, --grep and -n, as all pages use it, and -k. All lines are
// young enough for --since.
func (n *node) journalctl(t *testing.T, args []string) (out string, code int) {
	t.Helper()
	grep, last, unit := regexp.MustCompile(""), -1, ""
	for i := 0; i < len(args); i++ {
		value := ""
		if i+1 < len(args) {
			value = args[i+1]
		}
		var err error
		switch args[i] {
		case "-u":
			unit = value
		case "-o":
			if value != "cat" {
				err = errors.New("want -o cat")
			}
		case "--grep":
			grep, err = regexp.Compile(value)
		case "-n":
			last, err = strconv.Atoi(value)
		case "--since":
		default:
			err = fmt.Errorf("unknown flag %s", args[i])
		}
		if err != nil {
			return err.Error() + "\n", 1
		}
		i++
	}
	if unit != "kekd" {
		return "want -u kekd\n", 1
	}
	var lines []string
	for line := range strings.Lines(n.log(t)) {
		if !strings.HasPrefix(line, "--- start of") && grep.MatchString(line) {
			lines = append(lines, line)
		}
	}
	if last >= 0 && len(lines) > last {
		lines = lines[len(lines)-last:]
	}
	if len(lines) == 0 {
		return "-- No entries --\n", 1
	}
	return strings.Join(lines, ""), 0
}
