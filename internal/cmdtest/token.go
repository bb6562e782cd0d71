package cmdtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"kekd/hsm/hsmtest"
)

const (
	softHSMModule = hsmtest.SoftHSMModule
	softHSMConf   = "softhsm2.conf"
	tokenDir      = "tokens"
	// defaultLabel is the label of tokens, where the script names none.
	defaultLabel = "kekd"
)

// tool runs a program that needs SoftHSM's configuration. The script's own
// programs do not have it: kekd must hand it to its worker by itself.
func (s *script) tool(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(s.dir, softHSMConf))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func cmdToken(s *script, _ *testscript.TestScript, args []string) (output, error) {
	label := defaultLabel
	switch len(args) {
	case 0:
	case 1:
		label = args[0]
	default:
		return output{}, usageError("token [LABEL]")
	}
	return output{}, s.tool("softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "87654321", "--pin", s.pin)
}

func cmdKeygen(s *script, _ *testscript.TestScript, args []string) (output, error) {
	if len(args) != 2 {
		return output{}, usageError("keygen LABEL ID")
	}
	return output{}, s.tool("pkcs11-tool", "--module", softHSMModule, "--token-label", defaultLabel, "--login", "--pin", s.pin,
		"--keygen", "--key-type", "aes:32", "--label", args[0], "--id", args[1])
}

func cmdKeyAttributes(s *script, _ *testscript.TestScript, args []string) (output, error) {
	if len(args) < 2 {
		return output{}, usageError("keyattr LABEL ATTRIBUTE=VALUE ...")
	}
	// The PIN file may hold a wrong one at the time.
	right, err := s.secretFile(s.pin)
	if err != nil {
		return output{}, err
	}
	defer func() { _ = os.Remove(right) }()
	return output{}, s.tool(tokenTool, append([]string{"attributes", right}, args...)...)
}

// cmdSetPIN changes the token's PIN behind kekd's back, as a security officer does.
func cmdSetPIN(s *script, ts *testscript.TestScript, args []string) (output, error) {
	if len(args) != 2 {
		return output{}, usageError("setpin FROM TO")
	}
	from, to := ts.MkAbs(args[0]), ts.MkAbs(args[1])
	if err := s.tool(tokenTool, "pin", from, to); err != nil {
		return output{}, err
	}
	pin, err := readPIN(to)
	s.pin = pin
	return output{}, err
}

func cmdPIN(s *script, _ *testscript.TestScript, args []string) (output, error) {
	if len(args) != 1 {
		return output{}, usageError("pin right|wrong")
	}
	switch args[0] {
	case "right":
		return output{}, s.writePIN(s.pin)
	case "wrong":
		return output{}, s.writePIN(s.newSecret("wrong"))
	}
	return output{}, usageError("pin right|wrong")
}

// secretFile writes a PIN to a file of its own. The caller removes it.
func (s *script) secretFile(pin string) (string, error) {
	f, err := os.CreateTemp(s.dir, "pin-")
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	_, err = f.WriteString(pin)
	return f.Name(), err
}

func readPIN(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}
