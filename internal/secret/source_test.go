package secret

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func writeFile(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // the umask does not apply
		t.Fatal(err)
	}
}

func TestFileSourceReadsOnePIN(t *testing.T) {
	longest := strings.Repeat("9", MaxPINSize)
	for _, tc := range []struct{ name, content, want string }{
		{"bare", "1234", "1234"},
		{"line ending", "1234\n", "1234"},
		{"line ending of Windows", "1234\r\n", "1234"},
		{"spaces are part of it", " 12 34 \n", " 12 34 "},
		{"longest", longest, longest},
		{"longest with a line ending", longest + "\r\n", longest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pin")
			writeFile(t, path, tc.content, 0o600)
			got, err := FileSource{Path: path}.Read()
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tc.want {
				t.Errorf("got %d bytes that differ from the %d wanted", len(got), len(tc.want))
			}
		})
	}
}

// Every refusal names the field, the path and what to do, and never the PIN.
func TestFileSourceRefuses(t *testing.T) {
	const pin = "83kd02ls"
	for _, tc := range []struct {
		name string
		make func(t *testing.T, path string)
		want string
	}{
		{"missing", func(*testing.T, string) {}, "no such file or directory; it must exist"},
		{"directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "is not a regular file"},
		{"FIFO", func(t *testing.T, path string) {
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is not a regular file"},
		{"group reads", func(t *testing.T, path string) { writeFile(t, path, pin, 0o640) }, "mode 0640"},
		{"others write", func(t *testing.T, path string) { writeFile(t, path, pin, 0o602) }, "run chmod 0600 "},
		{"empty", func(t *testing.T, path string) { writeFile(t, path, "", 0o600) }, "is empty"},
		{"a line ending only", func(t *testing.T, path string) { writeFile(t, path, "\r\n", 0o600) }, "is empty"},
		{"too long", func(t *testing.T, path string) {
			writeFile(t, path, strings.Repeat("9", MaxPINSize+1)+"\n", 0o600)
		}, "is longer than 256 bytes"},
		{"far too long", func(t *testing.T, path string) {
			writeFile(t, path, strings.Repeat("9", 1<<16), 0o600)
		}, "is longer than 256 bytes"},
		{"two line endings", func(t *testing.T, path string) { writeFile(t, path, pin+"\n\n", 0o600) }, "holds a line break"},
		{"two lines", func(t *testing.T, path string) { writeFile(t, path, pin+"\n"+pin, 0o600) }, "holds a line break"},
		{"zero byte", func(t *testing.T, path string) { writeFile(t, path, pin+"\x00", 0o600) }, "zero byte"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pin")
			tc.make(t, path)
			got, err := FileSource{Path: path}.Read()
			if err == nil {
				t.Fatal("the file was accepted")
			}
			if got != nil {
				t.Error("a PIN came with the error")
			}
			for _, want := range []string{"hsm.pinFile: ", path, tc.want} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), pin) {
				t.Errorf("error %q holds the PIN", err)
			}
		})
	}
}

func TestFileSourceTakesAnOpenFileIfAsked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin")
	writeFile(t, path, "1234", 0o644)
	got, err := FileSource{Path: path, AllowOpen: true}.Read()
	if err != nil || string(got) != "1234" {
		t.Errorf("Read() = %d bytes, %v", len(got), err)
	}
}

func TestFileSourceFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "data"), "1234", 0o600)
	link := filepath.Join(dir, "pin")
	if err := os.Symlink("data", link); err != nil {
		t.Fatal(err)
	}
	got, err := FileSource{Path: link}.Read()
	if err != nil || string(got) != "1234" {
		t.Errorf("Read() = %d bytes, %v", len(got), err)
	}
}

// ownedBy is a file's description with another owner: only root could make
// such a file.
type ownedBy struct {
	os.FileInfo
	uid uint32
}

func (o ownedBy) Sys() any { return &syscall.Stat_t{Uid: o.uid} }

func TestFileSourceRefusesAForeignOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin")
	writeFile(t, path, "1234", 0o600)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		uid    uint32
		accept bool
	}{
		{"root", 0, true},
		{"ourselves", uint32(os.Geteuid()), true},
		{"somebody else", 4242, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := FileSource{Path: path}.check(ownedBy{info, tc.uid})
			if (err == nil) != tc.accept {
				t.Fatalf("check() = %v, want accepted: %v", err, tc.accept)
			}
			if err != nil && !strings.Contains(err.Error(), "chown ") {
				t.Errorf("error %q has no remedy", err)
			}
		})
	}
}

func TestCredentialSource(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "pin"), "1234\n", 0o440) // as systemd's access control list looks
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, credential, dir, problem string }{
		{"found", "pin", dir, ""},
		{"missing", "other", dir, "add LoadCredential=other:PATH"},
		{"not under systemd", "pin", "", "$CREDENTIALS_DIRECTORY is not set"},
		{"no name", "", dir, "is not a credential name"},
		{"parent", "..", dir, "is not a credential name"},
		{"path", "../pin", dir, "is not a credential name"},
		{"directory", "dir", dir, "is not a regular file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv(credentialsDir, tc.dir)
			got, err := CredentialSource{Name: tc.credential}.Read()
			if tc.problem == "" {
				if err != nil || string(got) != "1234" {
					t.Errorf("Read() = %d bytes, %v", len(got), err)
				}
				return
			}
			if err == nil {
				t.Fatal("the credential was accepted")
			}
			for _, want := range []string{"hsm.pinCredential: ", tc.problem} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestSourcesNameThePlace(t *testing.T) {
	for want, source := range map[string]Source{
		"file /etc/kekd/pin":     FileSource{Path: "/etc/kekd/pin"},
		"systemd credential pin": CredentialSource{Name: "pin"},
	} {
		if got := source.String(); got != want {
			t.Errorf("String() = %q, want %q", got, want)
		}
	}
}

// Whatever the file holds: a PIN of one line within the limit, or an error that
// does not repeat it.
func FuzzReadPIN(f *testing.F) {
	for _, seed := range []string{"", "1234", "1234\n", "1234\r\n", "\n\n", "a\x00b", strings.Repeat("9", MaxPINSize+3)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		pin, err := readPIN(bytes.NewReader(content), "PATH")
		if err != nil {
			if said := []string{
				"PATH is empty; it must hold the PIN alone",
				fmt.Sprintf("PATH is longer than %d bytes; it must hold the PIN alone", MaxPINSize),
				"PATH holds a line break or a zero byte inside; it must hold the PIN alone",
			}; pin != nil || !slices.Contains(said, err.Error()) {
				t.Errorf("%d bytes of PIN with the error %q", len(pin), err)
			}
			return
		}
		if len(pin) == 0 || len(pin) > MaxPINSize || bytes.ContainsAny(pin, "\r\n\x00") {
			t.Errorf("accepted %q", []byte(pin))
		}
		if rest, ok := bytes.CutPrefix(content, pin); !ok || !slices.Contains([]string{"", "\n", "\r\n"}, string(rest)) {
			t.Errorf("%q became %q", content, []byte(pin))
		}
	})
}
