package worker

import (
	"errors"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
)

// verdict is what to do inside the worker about a failed call.
type verdict uint8

const (
	// giveUp: report it as it is.
	giveUp verdict = iota
	// freshSession: once more on a fresh session.
	freshSession
	// freshHandle: find the key again, then once more on a fresh session.
	freshHandle
	// pauseThenRetry: once more on a fresh session after a moment; throttling
	// HSMs answer like this under load.
	pauseThenRetry
)

// rvOf returns the return value and the call of a module's error.
func rvOf(err error) (p11.Error, bool) {
	return errors.AsType[p11.Error](err)
}

// judge says what a failed call means and what to do about it.
//
// The classes follow what modules were seen to return, not only the standard:
// NSS answers CKR_KEY_TYPE_INCONSISTENT to CKA_ENCRYPT=false, CloudHSM answers
// CKR_DEVICE_ERROR when it throttles.
func judge(e p11.Error) (wire.Class, verdict) {
	if e.Call == "C_GetAttributeValue" && e.RV == pkcs11.CKR_FUNCTION_FAILED {
		// opencryptoki to an object that another process destroyed since it was found;
		// the next search does not find it.
		return wire.ClassToken, freshHandle
	}
	switch e.RV {
	case pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE,
		0x42, // CKR_AEAD_DECRYPT_FAILED of PKCS#11 v3.0
		pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE,
		pkcs11.CKR_WRAPPED_KEY_INVALID, pkcs11.CKR_WRAPPED_KEY_LEN_RANGE:
		return wire.ClassRequest, giveUp
	case pkcs11.CKR_ARGUMENTS_BAD, pkcs11.CKR_MECHANISM_PARAM_INVALID:
		if e.Call == "C_DecryptInit" || e.Call == "C_Decrypt" {
			return wire.ClassRequest, giveUp
		}
		return wire.ClassRefused, giveUp
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_OPERATION_ACTIVE,
		pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_BUFFER_TOO_SMALL:
		return wire.ClassToken, freshSession
	case pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID:
		return wire.ClassToken, freshHandle
	case pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_SESSION_COUNT:
		return wire.ClassToken, pauseThenRetry
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE,
		pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED:
		return wire.ClassPIN, giveUp
	case pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT,
		pkcs11.CKR_KEY_SIZE_RANGE, pkcs11.CKR_MECHANISM_INVALID,
		pkcs11.CKR_UNWRAPPING_KEY_SIZE_RANGE, pkcs11.CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT,
		0x1B, // CKR_ACTION_PROHIBITED
		pkcs11.CKR_FUNCTION_NOT_SUPPORTED, pkcs11.CKR_FUNCTION_REJECTED,
		pkcs11.CKR_TOKEN_WRITE_PROTECTED, pkcs11.CKR_SESSION_READ_ONLY,
		pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_TEMPLATE_INCONSISTENT,
		pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID:
		return wire.ClassRefused, giveUp
	}
	// CKR_USER_PIN_NOT_INITIALIZED is here too: the PIN was not looked at, so trying
	// again costs nothing, and SoftHSM says it for a moment while another process
	// logs in, which rewrites the token's file.
	// CKR_GENERAL_ERROR, CKR_DEVICE_REMOVED, CKR_TOKEN_NOT_PRESENT, CKR_USER_NOT_LOGGED_IN,
	// CKR_CRYPTOKI_NOT_INITIALIZED, vendors' codes and whatever is new.
	return wire.ClassToken, giveUp
}

// ambiguous reports whether a failure may be a damaged ciphertext's fault as well
// as the token's: SoftHSM 2.6 answers CKR_GENERAL_ERROR to a wrong tag, others
// CKR_DEVICE_ERROR or a code of their own. Codes that speak of the token, the
// login, a session or a handle say nothing about the ciphertext, even when all is
// well again a moment later.
func ambiguous(e p11.Error) bool {
	if e.Call != "C_Decrypt" {
		return false
	}
	switch e.RV {
	case pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_SESSION_COUNT:
		return false
	}
	class, what := judge(e)
	return class == wire.ClassToken && what != freshSession && what != freshHandle
}

// vague reports whether a return value says no more than that something did not
// work. Modules use these where the standard has a word of its own.
func vague(rv uint) bool {
	return rv == pkcs11.CKR_GENERAL_ERROR || rv == pkcs11.CKR_FUNCTION_FAILED
}

// fail makes the error that goes to the parent. An error that already is one
// passes unchanged.
func fail(text string, err error) error {
	if already, ok := errors.AsType[*wire.Error](err); ok {
		return already
	}
	e, ok := rvOf(err)
	if !ok {
		return &wire.Error{Class: wire.ClassToken, Text: text + ": " + err.Error()}
	}
	class, _ := judge(e)
	return &wire.Error{Class: class, Call: e.Call, RV: e.RV, Text: text}
}

// failSetup is fail for calls that come before any key is used. A module that
// refuses one of those says nothing about a key or a ciphertext: to whoever waits
// for an answer the HSM is unavailable.
func failSetup(text string, err error) error {
	failed := fail(text, err)
	if e, ok := errors.AsType[*wire.Error](failed); ok && (e.Class == wire.ClassRefused || e.Class == wire.ClassRequest) {
		e.Class = wire.ClassSetup
	}
	return failed
}
