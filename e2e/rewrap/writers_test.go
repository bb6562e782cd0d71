package rewrap

import (
	"slices"
	"strings"
	"testing"

	"kekd/e2e/internal/harness"
)

// TestWrongWriters: an API server that does not encrypt with kekd first stops rewrap,
// and rotate before there is a new key. Each touches at most one object of each resource
// for each API server.
func TestWrongWriters(t *testing.T) {
	c := newCluster(t)
	const each = 40
	c.create(t, "many", "secrets", each)
	c.create(t, "many", "configmaps", each)
	other := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{})
	other.StartReady(t)
	sibling := harness.NewSibling(t, c.kekd.Token.View(t), harness.KekdOptions{})
	sibling.StartReady(t)
	c.rotateKey(t)
	old := c.stored(t)
	own, another := kms(provider, sibling.Socket), kms("other", other.Socket)
	nodes := []string{"--node", c.kekd.URL, "--node", sibling.URL}
	tests := []struct {
		name      string
		providers []string
		both      bool // the good API server is known as well
		want      string
	}{
		{"identity first", []string{identity, own}, false, "with identity (unencrypted)"},
		{"aescbc first", []string{aescbc, own, identity}, false, "with aescbc: key1"},
		{"another KMS provider first", []string{another, own, identity}, false, `with another KMS provider "other"`},
		{"one of two API servers", []string{identity, own}, true, "with identity (unencrypted)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c.restore(t, old) // it must be able to read what the case before has spoiled
			c.bad.Configure(t, c.encryption(t, tt.providers...))
			c.bad.StartReady(t)
			defer c.bad.Stop(t)
			flags, servers := []string{"--kubeconfig", c.bad.Kubeconfig(t), "--apiserver", c.bad.URL}, 1
			if tt.both {
				flags, servers = append(c.kubeFlags, "--apiserver", c.good.URL, "--apiserver", c.bad.URL), 2
			}
			before := c.keys(t)
			for _, run := range []func() (int, *harness.Kekctl){
				func() (int, *harness.Kekctl) { return c.rotate(t, append(nodes, flags...)...) },
				func() (int, *harness.Kekctl) { return c.rewrap(t, flags...) },
			} {
				c.restore(t, old)
				code, k := run()
				stderr := k.Stderr(t)
				if code != 1 || !strings.Contains(stderr, c.bad.URL+" writes secrets "+tt.want) || !strings.Contains(stderr, "writes configmaps "+tt.want) {
					t.Errorf("kekctl ends with %d, want 1 and %q", code, tt.want)
				}
				after := c.stored(t)
				touched := changed(old, after)
				t.Logf("touched: %v", touched)
				if len(touched) > 2*servers {
					t.Errorf("%d objects were touched, want at most one of each resource and API server", len(touched))
				}
				for _, key := range touched {
					if tt.both && !strings.HasPrefix(string(after[key]), "k8s:enc:kms:v2:"+provider+":") {
						t.Errorf("%s was not brought back", key)
					}
				}
			}
			if after := c.keys(t); !slices.Equal(after, before) {
				t.Errorf("the ring is %v, want %v: kekctl rotate created a key", after, before)
			}
		})
	}
	t.Run("all good", func(t *testing.T) {
		c.restore(t, old)
		if code, _ := c.rewrap(t, append(c.kubeFlags, "--apiserver", c.good.URL)...); code != 0 {
			t.Errorf("kekctl ends with %d, want 0", code)
		}
	})
}
