// Package audit is the trail of what was done with the keys: a chain of JSON lines
// in files, of which every minute or thousand lines a key on the token signs the
// state. docs/audit.md has the format and says what it proves, and what it does not.
//
// Who can write the files, but has neither the PIN nor the memory of the process
// that writes them, can change, remove, reorder or cut off nothing that was signed
// without Verify finding it. What came after the last signature is not protected.
//
// A Log writes one chain. Its callers hand over an Event and go on; one goroutine
// writes. Verify and Query read with a fixed amount of memory, whatever the size.
package audit
