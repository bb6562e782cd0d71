package kek_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kekd/internal/kek"
)

func TestNewIDGolden(t *testing.T) {
	t.Parallel()
	tail := []byte{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7}
	for name, c := range map[string]struct {
		activation time.Time
		want       string
		back       time.Time
	}{
		"a second":          {time.Unix(0x6a0b0c0d, 999_999_999), "01" + "000000006a0b0c0d" + "a0a1a2a3a4a5a6a7", time.Unix(0x6a0b0c0d, 0)},
		"another zone":      {time.Unix(0x6a0b0c0d, 0).In(time.FixedZone("", 3600)), "01" + "000000006a0b0c0d" + "a0a1a2a3a4a5a6a7", time.Unix(0x6a0b0c0d, 0)},
		"1970":              {time.Unix(0, 0), "01" + "0000000000000000" + "a0a1a2a3a4a5a6a7", time.Unix(0, 0)},
		"before 1970":       {time.Time{}, "01" + "0000000000000000" + "a0a1a2a3a4a5a6a7", time.Unix(0, 0)},
		"the end of 9999":   {time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), "01" + "0000003afff4417f" + "a0a1a2a3a4a5a6a7", time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		"after all of that": {time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), "01" + "0000003afff4417f" + "a0a1a2a3a4a5a6a7", time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id, err := kek.NewID(c.activation, bytes.NewReader(tail))
			if err != nil || id.String() != c.want {
				t.Fatalf("got %s, %v; want %s", id, err, c.want)
			}
			if got, ok := id.Activation(); !ok || !got.Equal(c.back) || got.Location() != time.UTC {
				t.Errorf("activates at %v, %t; want %v in UTC", got, ok, c.back)
			}
		})
	}
	if id, err := kek.NewID(time.Unix(1, 0), bytes.NewReader(tail[:7])); !errors.Is(err, io.ErrUnexpectedEOF) || id != "" {
		t.Errorf("with too little randomness: %q, %v", id, err)
	}
}

func TestActivationOfForeignIDs(t *testing.T) {
	t.Parallel()
	for name, id := range map[string]string{
		"empty":            "",
		"short":            "01",
		"16 bytes":         "01000000006a0b0c0da0a1a2a3a4a5a6",
		"18 bytes":         "01000000006a0b0c0da0a1a2a3a4a5a6a7a8",
		"another format":   "02000000006a0b0c0da0a1a2a3a4a5a6a7",
		"the year 10000":   "010000003afff44180a0a1a2a3a4a5a6a7",
		"overflows a time": "017fffffffffffffffa0a1a2a3a4a5a6a7",
		"a negative time":  "01ffffffffffffffffa0a1a2a3a4a5a6a7",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := hex.DecodeString(id)
			if err != nil {
				t.Fatal(err)
			}
			if at, ok := kek.ID(b).Activation(); ok || !at.IsZero() {
				t.Errorf("activates at %v, %t; want the id of another tool", at, ok)
			}
		})
	}
}

// anyID draws ids of both kinds that are near each other.
func anyID() *rapid.Generator[kek.ID] {
	return rapid.Custom(func(t *rapid.T) kek.ID {
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			return kek.ID(rapid.SliceOfN(rapid.Byte(), 0, 18).Draw(t, "bytes"))
		case 1: // own in form, with any time
			b := append([]byte{1}, rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "bytes")...)
			return kek.ID(b)
		}
		tail := []byte{byte(rapid.IntRange(0, 2).Draw(t, "tail")), 0, 0, 0, 0, 0, 0, 0}
		id, err := kek.NewID(time.Unix(rapid.Int64Range(0, 300).Draw(t, "activation"), 0), bytes.NewReader(tail))
		if err != nil {
			t.Fatal(err)
		}
		return id
	})
}

func TestCompareIsATotalOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := anyID().Draw(t, "a"), anyID().Draw(t, "b"), anyID().Draw(t, "c")
		if (a.Compare(b) == 0) != (a == b) {
			t.Fatalf("Compare = %d for %s and %s", a.Compare(b), a, b)
		}
		if a.Compare(b) != -b.Compare(a) {
			t.Fatalf("Compare = %d one way, %d the other", a.Compare(b), b.Compare(a))
		}
		if a.Compare(b) <= 0 && b.Compare(c) <= 0 && a.Compare(c) > 0 {
			t.Fatalf("%s <= %s <= %s, but the first is behind the last", a, b, c)
		}
		at, ownA := a.Activation()
		bt, ownB := b.Activation()
		switch {
		case ownA && !ownB && a.Compare(b) <= 0:
			t.Fatalf("own id %s is not behind the foreign %s", a, b)
		case ownA && ownB && at.Before(bt) && a.Compare(b) >= 0:
			t.Fatalf("%s activates before %s and is not before it", a, b)
		}
	})
}

func TestParseID(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := kek.ID(rapid.SliceOfN(rapid.Byte(), 1, kek.MaxIDSize).Draw(t, "id"))
		for _, s := range []string{id.String(), strings.ToUpper(id.String())} {
			if back, err := kek.ParseID(s); err != nil || back != id {
				t.Fatalf("ParseID(%q) = %s, %v", s, back, err)
			}
		}
	})
	for _, bad := range []string{"", "0", "0g", "0x01", " 01", "01 ", strings.Repeat("ab", kek.MaxIDSize+1)} {
		if id, err := kek.ParseID(bad); err == nil || id != "" {
			t.Errorf("ParseID(%q) = %q, %v; want an error", bad, id, err)
		}
	}
}
