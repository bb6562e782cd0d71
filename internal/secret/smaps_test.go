package secret

import (
	"strconv"
	"strings"
	"unsafe"
)

// addresses reads the range in front of a mapping's block in /proc/self/smaps.
func addresses(line string) (low, high uintptr, ok bool) {
	first, _, _ := strings.Cut(line, " ")
	from, to, ok := strings.Cut(first, "-")
	if !ok {
		return 0, 0, false
	}
	l, errLow := strconv.ParseUint(from, 16, 64)
	h, errHigh := strconv.ParseUint(to, 16, 64)
	return uintptr(l), uintptr(h), errLow == nil && errHigh == nil
}

func addressOf(mem []byte) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
}
