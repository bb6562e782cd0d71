package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFiles(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ args, want []string }{
		"create":           {[]string{"--root", "/run/r", "create", "--bundle", "/b", "--pid-file", "/p", "id"}, []string{"/b/config.json"}},
		"create, joined":   {[]string{"create", "--bundle=/b", "id"}, []string{"/b/config.json"}},
		"run here":         {[]string{"run", "id"}, []string{"config.json"}},
		"exec":             {[]string{"--log", "/l", "exec", "--process", "/p.json", "--detach", "id"}, []string{"/p.json"}},
		"exec of a string": {[]string{"exec", "id", "ls"}, nil},
		"state":            {[]string{"state", "id"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, files(c.args)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRewrite(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ before, after string }{
		"bundle": {
			`{"process":{"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"],"ambient":null},"oomScoreAdj":-999},"n":18446744073709551615}`,
			`{"process":{"capabilities":{"bounding":["CAP_CHOWN"],"ambient":null},"oomScoreAdj":0},"n":18446744073709551615}`,
		},
		"process": {
			`{"args":["sh"],"capabilities":{"effective":["CAP_SYS_RESOURCE"]},"oomScoreAdj":900}`,
			`{"args":["sh"],"capabilities":{"effective":[]},"oomScoreAdj":900}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(file, []byte(c.before), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := rewrite(file); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got, want map[string]any
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(c.after), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if err := rewrite(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("no file: %v, want it left to runc", err)
	}
}
