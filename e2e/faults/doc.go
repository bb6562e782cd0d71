// Package faults holds the fault matrix: each way in which a PKCS#11 module fails,
// at each moment at which kekd needs it, over the real daemon, its real worker
// process and a real token. The module that fails is hsm/hsmtest/faultmodule.
package faults
