package cmdtest

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/miekg/pkcs11" //nolint:depguard // this acts beside kekd, as other tools on a token do
)

// tokenTool changes what softhsm2-util and pkcs11-tool cannot change. It is a
// program of its own, hidden in the test binary, since SoftHSM reads its
// configuration from the environment and keeps one per process.
const tokenTool = "kekd-test-token"

func tokenToolMain() {
	if err := runTokenTool(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, tokenTool+":", err)
		os.Exit(1)
	}
}

// runTokenTool runs "attributes PINFILE LABEL A=V ..." or "pin FROM TO".
func runTokenTool(args []string) error {
	if len(args) < 3 {
		return errors.New("too few arguments")
	}
	module := pkcs11.New(softHSMModule)
	if module == nil {
		return fmt.Errorf("load %s", softHSMModule)
	}
	if err := module.Initialize(); err != nil {
		return err
	}
	slot, err := slotOf(module, defaultLabel)
	if err != nil {
		return err
	}
	session, err := module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	pin, err := readPIN(args[1])
	if err != nil {
		return err
	}
	if err := module.Login(session, pkcs11.CKU_USER, pin); err != nil {
		return err
	}
	switch args[0] {
	case "attributes":
		return setAttributes(module, session, args[2], args[3:])
	case "pin":
		next, err := readPIN(args[2])
		if err != nil {
			return err
		}
		return module.SetPIN(session, pin, next)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// slotOf finds the only token of a label.
func slotOf(module *pkcs11.Ctx, label string) (uint, error) {
	slots, err := module.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	var found []uint
	for _, slot := range slots {
		info, err := module.GetTokenInfo(slot)
		if err != nil {
			return 0, err
		}
		if strings.TrimRight(info.Label, " ") == label {
			found = append(found, slot)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("%d tokens have the label %q", len(found), label)
	}
	return found[0], nil
}

// setAttributes changes the only AES key of a label.
func setAttributes(module *pkcs11.Ctx, session pkcs11.SessionHandle, label string, changes []string) error {
	template := make([]*pkcs11.Attribute, 0, len(changes))
	for _, change := range changes {
		name, value, _ := strings.Cut(change, "=")
		switch name {
		case "label":
			template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, value))
		case "encrypt":
			template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, value == "true"))
		case "decrypt":
			template = append(template, pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, value == "true"))
		default:
			return fmt.Errorf("unknown attribute %q", change)
		}
	}
	if err := module.FindObjectsInit(session, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	}); err != nil {
		return err
	}
	keys, _, err := module.FindObjects(session, 2)
	if err != nil {
		return err
	}
	if len(keys) != 1 {
		return fmt.Errorf("%d keys have the label %q", len(keys), label)
	}
	return module.SetAttributeValue(session, keys[0], template)
}
