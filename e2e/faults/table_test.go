package faults

import "google.golang.org/grpc/codes"

// fault is a way for a module to fail: what is done to a call, in the language
// of SetFaults in package hsmtest.
type fault struct {
	name string
	what string
	// lasting: for as long as outageLasts, and not once.
	lasting bool
	// only names the functions that can fail so; nil for those of the moment.
	only []string
	// kill ends the worker first, for what happens to a new one only.
	kill bool
	// also are the codes that a caller may see besides those of an outage.
	also []codes.Code
	// unnoticed: direct mode gives out what the token made of a plaintext, right or wrong.
	unnoticed bool
}

// faults are the rows. Return values by their names in PKCS#11 v2.40, section 6.
func faults() []fault {
	crypt := []string{"C_Encrypt", "C_Decrypt"}
	return []fault{
		{name: "CKR_GENERAL_ERROR", what: "rv=0x5"},
		{name: "CKR_FUNCTION_FAILED", what: "rv=0x6"},
		{name: "CKR_HOST_MEMORY", what: "rv=0x2"},
		{name: "CKR_DEVICE_ERROR", what: "rv=0x30"},
		{name: "CKR_DEVICE_MEMORY", what: "rv=0x31"},
		{name: "CKR_DEVICE_REMOVED", what: "rv=0x32"},
		{name: "CKR_KEY_HANDLE_INVALID", what: "rv=0x60"},
		{name: "CKR_OPERATION_ACTIVE", what: "rv=0x90"},
		{name: "CKR_SESSION_CLOSED", what: "rv=0xB0"},
		{name: "CKR_SESSION_COUNT", what: "rv=0xB1"},
		{name: "CKR_SESSION_HANDLE_INVALID", what: "rv=0xB3"},
		{name: "CKR_TOKEN_NOT_PRESENT", what: "rv=0xE0"},
		{name: "CKR_USER_NOT_LOGGED_IN", what: "rv=0x101"},
		{name: "CKR_CRYPTOKI_NOT_INITIALIZED", what: "rv=0x190"},
		{name: "a vendor's own code", what: "rv=0x80000042"},
		{name: "fails after it took effect", what: "after rv=0x30"},
		{name: "crashes (SIGSEGV)", what: "crash"},
		{name: "calls abort()", what: "abort"},
		{name: "calls exit(0)", what: "exit"},
		{name: "never returns", what: "hang"},
		{name: "takes 700 ms", what: "ms=700"},
		{name: "logs out", what: "logout"},
		{name: "closes all sessions", what: "closeall"},
		{name: "returns wrong bytes", what: "garble", only: crypt, also: []codes.Code{codes.InvalidArgument}, unnoticed: true},
		{name: "opens one session, for 3 s", what: "limit=1", lasting: true, kill: true, only: []string{"C_OpenSession"}},
		{name: "CKR_DEVICE_ERROR, for 3 s", what: "rv=0x30", lasting: true},
		{name: "CKR_GENERAL_ERROR, for 3 s", what: "rv=0x5", lasting: true},
		{name: "CKR_TOKEN_NOT_PRESENT, for 3 s", what: "rv=0xE0", lasting: true},
		{name: "a vendor's own code, for 3 s", what: "rv=0x80000042", lasting: true},
		{name: "crashes again and again, for 3 s", what: "crash", lasting: true},
		{name: "never returns, for 3 s", what: "hang", lasting: true},
		{name: "takes 700 ms, for 3 s", what: "ms=700", lasting: true},
		{name: "treats IVs otherwise, for 3 s", what: "iv=luna", lasting: true, only: []string{"C_EncryptInit"}, also: []codes.Code{codes.FailedPrecondition}},
	}
}

// moment is when the fault strikes.
type moment struct {
	name string
	// calls are the functions that are needed then.
	calls []string
	run   func(c *testCase)
}

// moments are the columns.
func moments() []moment {
	return []moment{
		{"at the start", []string{"C_Initialize", "C_Login"}, (*testCase).atStart},
		{"in an Encrypt", []string{"C_Encrypt"}, (*testCase).inEncrypt},
		{"in a cold Decrypt", []string{"C_Decrypt"}, (*testCase).inDecrypt},
		{"in a rotation", []string{"C_FindObjects", "C_Encrypt"}, (*testCase).inRotation},
		{"in a probe", []string{"C_Decrypt"}, (*testCase).inProbe},
	}
}

// calls are the functions that fail at a moment.
func (f fault) calls(m moment) []string {
	if f.only != nil {
		return f.only
	}
	return m.calls
}

// lines are the faults to set for a fault at a moment.
func (f fault) lines(m moment) []string {
	var lines []string
	for _, call := range f.calls(m) {
		line := call + " " + f.what
		if !f.lasting {
			line += " n=1"
		}
		lines = append(lines, line)
	}
	return lines
}
