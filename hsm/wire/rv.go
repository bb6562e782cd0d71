package wire

import (
	"fmt"

	"github.com/miekg/pkcs11"
)

// RVName spells a CK_RV with its name where the standard has one:
// "CKR_PIN_INCORRECT (0xa0)".
func RVName(rv uint) string {
	switch rv {
	case pkcs11.CKR_OK:
		return "CKR_OK (0x0)"
	case 0x1B: // missing from the binding's table
		return "CKR_ACTION_PROHIBITED (0x1b)"
	}
	// The binding prints "pkcs11: 0xA0: CKR_PIN_INCORRECT".
	var hex uint
	var name string
	if n, _ := fmt.Sscanf(pkcs11.Error(rv).Error(), "pkcs11: 0x%X: %s", &hex, &name); n == 2 {
		return fmt.Sprintf("%s (0x%x)", name, rv)
	}
	return fmt.Sprintf("CK_RV 0x%x", rv)
}
