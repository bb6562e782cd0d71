package worker

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		call  string
		rv    uint
		class wire.Class
		what  verdict
	}{
		{"C_Decrypt", pkcs11.CKR_ENCRYPTED_DATA_INVALID, wire.ClassRequest, giveUp},
		{"C_Decrypt", pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, wire.ClassRequest, giveUp},
		{"C_Decrypt", 0x42, wire.ClassRequest, giveUp},
		{"C_Encrypt", pkcs11.CKR_DATA_INVALID, wire.ClassRequest, giveUp},
		{"C_Encrypt", pkcs11.CKR_DATA_LEN_RANGE, wire.ClassRequest, giveUp},
		{"C_Decrypt", pkcs11.CKR_ARGUMENTS_BAD, wire.ClassRequest, giveUp},
		{"C_DecryptInit", pkcs11.CKR_MECHANISM_PARAM_INVALID, wire.ClassRequest, giveUp},
		{"C_Encrypt", pkcs11.CKR_ARGUMENTS_BAD, wire.ClassRefused, giveUp},
		{"C_EncryptInit", pkcs11.CKR_MECHANISM_PARAM_INVALID, wire.ClassRefused, giveUp},
		{"C_Encrypt", pkcs11.CKR_SESSION_HANDLE_INVALID, wire.ClassToken, freshSession},
		{"C_Encrypt", pkcs11.CKR_SESSION_CLOSED, wire.ClassToken, freshSession},
		{"C_EncryptInit", pkcs11.CKR_OPERATION_ACTIVE, wire.ClassToken, freshSession},
		{"C_Encrypt", pkcs11.CKR_OPERATION_NOT_INITIALIZED, wire.ClassToken, freshSession},
		{"C_Encrypt", pkcs11.CKR_BUFFER_TOO_SMALL, wire.ClassToken, freshSession},
		{"C_GetAttributeValue", pkcs11.CKR_OBJECT_HANDLE_INVALID, wire.ClassToken, freshHandle},
		{"C_GetAttributeValue", pkcs11.CKR_FUNCTION_FAILED, wire.ClassToken, freshHandle}, // opencryptoki
		{"C_EncryptInit", pkcs11.CKR_KEY_HANDLE_INVALID, wire.ClassToken, freshHandle},
		{"C_Encrypt", pkcs11.CKR_DEVICE_ERROR, wire.ClassToken, pauseThenRetry},
		{"C_Encrypt", pkcs11.CKR_DEVICE_MEMORY, wire.ClassToken, pauseThenRetry},
		{"C_OpenSession", pkcs11.CKR_SESSION_COUNT, wire.ClassToken, pauseThenRetry},
		{"C_Login", pkcs11.CKR_PIN_INCORRECT, wire.ClassPIN, giveUp},
		{"C_Login", pkcs11.CKR_PIN_INVALID, wire.ClassPIN, giveUp},
		{"C_Login", pkcs11.CKR_PIN_LEN_RANGE, wire.ClassPIN, giveUp},
		{"C_Login", pkcs11.CKR_PIN_EXPIRED, wire.ClassPIN, giveUp},
		{"C_Login", pkcs11.CKR_PIN_LOCKED, wire.ClassPIN, giveUp},
		{"C_Login", pkcs11.CKR_USER_PIN_NOT_INITIALIZED, wire.ClassToken, giveUp},
		{"C_EncryptInit", pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, wire.ClassRefused, giveUp},
		{"C_EncryptInit", pkcs11.CKR_KEY_TYPE_INCONSISTENT, wire.ClassRefused, giveUp}, // NSS
		{"C_EncryptInit", pkcs11.CKR_KEY_SIZE_RANGE, wire.ClassRefused, giveUp},
		{"C_EncryptInit", pkcs11.CKR_MECHANISM_INVALID, wire.ClassRefused, giveUp},
		{"C_DestroyObject", 0x1b, wire.ClassRefused, giveUp},
		{"C_Encrypt", pkcs11.CKR_FUNCTION_NOT_SUPPORTED, wire.ClassRefused, giveUp},
		{"C_GenerateKey", pkcs11.CKR_TEMPLATE_INCONSISTENT, wire.ClassRefused, giveUp},
		{"C_GenerateKey", pkcs11.CKR_TOKEN_WRITE_PROTECTED, wire.ClassRefused, giveUp},
		{"C_UnwrapKey", pkcs11.CKR_WRAPPED_KEY_INVALID, wire.ClassRequest, giveUp}, // NSS; SoftHSM says CKR_GENERAL_ERROR
		{"C_UnwrapKey", pkcs11.CKR_WRAPPED_KEY_LEN_RANGE, wire.ClassRequest, giveUp},
		{"C_UnwrapKey", pkcs11.CKR_UNWRAPPING_KEY_SIZE_RANGE, wire.ClassRefused, giveUp},
		{"C_UnwrapKey", pkcs11.CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, wire.ClassRefused, giveUp},
		{"C_UnwrapKey", pkcs11.CKR_ARGUMENTS_BAD, wire.ClassRefused, giveUp}, // SoftHSM to a hash that it does not do
		{"C_SetAttributeValue", pkcs11.CKR_ATTRIBUTE_READ_ONLY, wire.ClassRefused, giveUp},
		{"C_SetAttributeValue", pkcs11.CKR_SESSION_READ_ONLY, wire.ClassRefused, giveUp},
		{"C_SetAttributeValue", pkcs11.CKR_FUNCTION_REJECTED, wire.ClassRefused, giveUp},
		{"C_Decrypt", pkcs11.CKR_GENERAL_ERROR, wire.ClassToken, giveUp},
		{"C_Decrypt", pkcs11.CKR_FUNCTION_FAILED, wire.ClassToken, giveUp},
		{"C_Encrypt", pkcs11.CKR_DEVICE_REMOVED, wire.ClassToken, giveUp},
		{"C_Encrypt", pkcs11.CKR_TOKEN_NOT_PRESENT, wire.ClassToken, giveUp},
		{"C_Encrypt", pkcs11.CKR_USER_NOT_LOGGED_IN, wire.ClassToken, giveUp},
		{"C_Encrypt", pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, wire.ClassToken, giveUp},
		{"C_Encrypt", pkcs11.CKR_HOST_MEMORY, wire.ClassToken, giveUp},
		{"C_Encrypt", pkcs11.CKR_VENDOR_DEFINED + 7, wire.ClassToken, giveUp},
		{"C_Encrypt", 0x7777, wire.ClassToken, giveUp},
	} {
		t.Run(fmt.Sprintf("%s %s", c.call, wire.RVName(c.rv)), func(t *testing.T) {
			t.Parallel()
			class, what := judge(p11.Error{Call: c.call, RV: c.rv})
			if class != c.class || what != c.what {
				t.Errorf("class %s, verdict %d; want %s, %d", class, what, c.class, c.what)
			}
		})
	}
}

func TestAmbiguous(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		call string
		rv   uint
		want bool
	}{
		{"C_Decrypt", pkcs11.CKR_GENERAL_ERROR, true}, // SoftHSM 2.6
		{"C_Decrypt", pkcs11.CKR_FUNCTION_FAILED, true},
		{"C_Decrypt", pkcs11.CKR_DEVICE_ERROR, true},
		{"C_Decrypt", pkcs11.CKR_VENDOR_DEFINED + 1, true},
		{"C_DecryptInit", pkcs11.CKR_GENERAL_ERROR, false}, // has seen no ciphertext
		{"C_Encrypt", pkcs11.CKR_GENERAL_ERROR, false},
		{"C_Decrypt", pkcs11.CKR_ENCRYPTED_DATA_INVALID, false}, // clearly the ciphertext
		{"C_Decrypt", pkcs11.CKR_DEVICE_REMOVED, false},
		{"C_Decrypt", pkcs11.CKR_TOKEN_NOT_PRESENT, false},
		{"C_Decrypt", pkcs11.CKR_USER_NOT_LOGGED_IN, false},
		{"C_Decrypt", pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, false},
		{"C_Decrypt", pkcs11.CKR_SESSION_HANDLE_INVALID, false},
		{"C_Decrypt", pkcs11.CKR_KEY_HANDLE_INVALID, false},
		{"C_Decrypt", pkcs11.CKR_HOST_MEMORY, false},
	} {
		if got := ambiguous(p11.Error{Call: c.call, RV: c.rv}); got != c.want {
			t.Errorf("%s %s: ambiguous %t, want %t", c.call, wire.RVName(c.rv), got, c.want)
		}
	}
}

func TestFail(t *testing.T) {
	t.Parallel()
	already := &wire.Error{Class: wire.ClassNoKey, Text: "no such key"}
	if got, ok := fail("find", fmt.Errorf("wrapped: %w", already)).(*wire.Error); !ok || got != already { //nolint:errorlint // the very same, unwrapped
		t.Errorf("an error that has a class became %v", got)
	}
	err := fail("log in", p11.Error{Call: "C_Login", RV: pkcs11.CKR_PIN_LOCKED})
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Call != "C_Login" || e.RV != pkcs11.CKR_PIN_LOCKED || !errors.Is(err, kek.ErrPIN) {
		t.Errorf("got %v, want ErrPIN with call and value", err)
	}
	if err := fail("find", errors.New("odd")); !errors.Is(err, kek.ErrUnavailable) || !strings.Contains(err.Error(), "find: odd") {
		t.Errorf("an error of no class became %v", err)
	}
}
