package wire

import (
	"fmt"

	"github.com/miekg/pkcs11"
)

// MechanismName spells a CK_MECHANISM_TYPE that may concern an AES key with its
// name: "CKM_AES_GCM (0x1087)".
func MechanismName(m uint) string {
	names := map[uint]string{
		pkcs11.CKM_AES_KEY_GEN: "CKM_AES_KEY_GEN", pkcs11.CKM_AES_ECB: "CKM_AES_ECB", pkcs11.CKM_AES_CBC: "CKM_AES_CBC",
		pkcs11.CKM_AES_CBC_PAD: "CKM_AES_CBC_PAD", pkcs11.CKM_AES_CTR: "CKM_AES_CTR", pkcs11.CKM_AES_GCM: "CKM_AES_GCM",
		pkcs11.CKM_AES_KEY_WRAP: "CKM_AES_KEY_WRAP", 0x210B: "CKM_AES_KEY_WRAP_KWP",
	}
	if name, ok := names[m]; ok {
		return fmt.Sprintf("%s (0x%x)", name, m)
	}
	return fmt.Sprintf("CK_MECHANISM_TYPE 0x%x", m)
}
