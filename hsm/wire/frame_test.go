package wire_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// bytesOf spells a frame by hand.
func bytesOf(length uint32, id uint64, kind byte, metaLength uint32, rest string) []byte {
	b := binary.BigEndian.AppendUint32(nil, length)
	b = binary.BigEndian.AppendUint64(b, id)
	b = append(b, kind)
	b = binary.BigEndian.AppendUint32(b, metaLength)
	return append(b, rest...)
}

func TestAppendGolden(t *testing.T) {
	t.Parallel()
	got, err := wire.Append([]byte{0xff}, wire.Frame{ID: 0x0102, Kind: wire.OpWrap, Meta: []byte(`{"a":1}`), Secret: secret.Bytes("seed")})
	if err != nil {
		t.Fatal(err)
	}
	const want = "ff" + "00000018" + "0000000000000102" + "06" + "00000007" + "7b2261223a317d" + "73656564"
	if hex.EncodeToString(got) != want {
		t.Errorf("got %x, want %s", got, want)
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   []byte
		want wire.Frame
		err  error
	}{
		"both":              {bytesOf(13+2+3, 7, 6, 2, "{}abc"), wire.Frame{ID: 7, Kind: wire.OpWrap, Meta: []byte("{}"), Secret: []byte("abc")}, nil},
		"neither":           {bytesOf(13, 1<<63, byte(wire.ReplyError), 0, ""), wire.Frame{ID: 1 << 63, Kind: wire.ReplyError}, nil},
		"metadata alone":    {bytesOf(15, 0, 1, 2, "{}"), wire.Frame{Kind: wire.OpLoad, Meta: []byte("{}")}, nil},
		"secret alone":      {bytesOf(15, 0, byte(wire.ReplyOK), 0, "{}"), wire.Frame{Kind: wire.ReplyOK, Secret: []byte("{}")}, nil},
		"the end":           {nil, wire.Frame{}, io.EOF},
		"cut in the length": {[]byte{0, 0}, wire.Frame{}, wire.ErrFrame},
		"cut after it":      {[]byte{0, 0, 0, 13}, wire.Frame{}, wire.ErrFrame},
		"cut in the header": {bytesOf(13, 7, 6, 0, "")[:10], wire.Frame{}, wire.ErrFrame},
		"cut in the secret": {bytesOf(16, 7, 6, 0, "ab"), wire.Frame{}, wire.ErrFrame},
		"too short":         {bytesOf(12, 7, 6, 0, ""), wire.Frame{}, wire.ErrFrame},
		"too long":          {bytesOf(wire.MaxFrame+1, 7, 6, 0, strings.Repeat("a", wire.MaxFrame)), wire.Frame{}, wire.ErrFrame},
		"kind 0":            {bytesOf(13, 7, 0, 0, ""), wire.Frame{}, wire.ErrFrame},
		"a later kind":      {bytesOf(13, 7, byte(wire.ReplyError)+1, 0, ""), wire.Frame{}, wire.ErrFrame},
		"metadata past all": {bytesOf(15, 7, 6, 3, "{}"), wire.Frame{}, wire.ErrFrame},
		"metadata 4 GiB":    {bytesOf(15, 7, 6, 1<<32-1, "{}"), wire.Frame{}, wire.ErrFrame},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bytes.NewReader(c.in)
			got, err := wire.Read(r)
			if !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
			if errors.Is(err, wire.ErrFrame) && errors.Is(err, io.EOF) {
				t.Errorf("%v passes for the end between two frames", err)
			}
			if !same(got, c.want) {
				t.Errorf("frame %+v, want %+v", got, c.want)
			}
		})
	}
}

// same compares frames by content: a Secret prints the same whatever it holds.
func same(a, b wire.Frame) bool {
	return a.ID == b.ID && a.Kind == b.Kind && bytes.Equal(a.Meta, b.Meta) && bytes.Equal(a.Secret, b.Secret)
}

func TestLongestFrame(t *testing.T) {
	t.Parallel()
	f := wire.Frame{ID: 1, Kind: wire.ReplyOK, Meta: []byte("{}"), Secret: make(secret.Bytes, wire.MaxFrame-13-2)}
	b, err := wire.Append(nil, f)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := wire.Read(bytes.NewReader(b)); err != nil || !same(got, f) {
		t.Errorf("read back with error %v", err)
	}
	f.Secret = append(f.Secret, 0)
	if b, err := wire.Append([]byte("kept"), f); !errors.Is(err, wire.ErrFrame) || string(b) != "kept" {
		t.Errorf("one byte more: %d bytes, %v; want ErrFrame and nothing appended", len(b), err)
	}
}

// A hostile length costs at most one longest frame.
func TestReadAllocation(t *testing.T) {
	in := bytesOf(wire.MaxFrame, 7, 6, 1<<32-1, "")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := wire.Read(bytes.NewReader(in)); !errors.Is(err, wire.ErrFrame) {
		t.Errorf("got %v, want ErrFrame", err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 2*wire.MaxFrame {
		t.Errorf("%d bytes were allocated for %d that arrived", n, len(in))
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(bytesOf(13, 7, 6, 0, ""))
	f.Add(bytesOf(18, 7, 6, 2, "{}abc"))
	f.Add(bytesOf(15, 7, 6, 1<<32-1, "{}"))
	f.Add(bytesOf(wire.MaxFrame, 7, 6, 2, "{}"))
	f.Add(append(bytesOf(13, 7, byte(wire.ReplyOK), 0, ""), bytesOf(14, 8, byte(wire.ReplyError), 1, "x")...))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var again []byte
		for {
			got, err := wire.Read(r)
			if err != nil {
				if !errors.Is(err, wire.ErrFrame) && !errors.Is(err, io.EOF) {
					t.Fatalf("an error of no class: %v", err)
				}
				if errors.Is(err, io.EOF) && r.Len() != 0 {
					t.Fatalf("the end with %d bytes left", r.Len())
				}
				break
			}
			if again, err = wire.Append(again, got); err != nil {
				t.Fatalf("a frame that was read can't be written: %v", err)
			}
		}
		if !bytes.HasPrefix(in, again) {
			t.Errorf("read and written again:\n%x\ngiven:\n%x", again, in)
		}
	})
}

// Frames of many senders arrive whole, and no sender's secret is wiped.
func TestConn(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	from, to := wire.NewConn(a), wire.NewConn(b)
	const senders, each = 8, 50
	var sending sync.WaitGroup
	for s := range uint64(senders) {
		sending.Go(func() {
			for i := range uint64(each) {
				sec := secret.Bytes(strings.Repeat(string(rune('a'+s)), int(i)))
				if err := from.Send(s<<32|i, wire.OpUnwrap, wire.UnwrapRequest{AAD: []byte(sec)}, sec); err != nil {
					t.Error(err)
				}
				if strings.Trim(string(sec), string(rune('a'+s))) != "" {
					t.Error("the sender's own secret was changed")
				}
			}
		})
	}
	next := map[uint64]uint64{}
	for range senders * each {
		f, err := to.Receive()
		if err != nil {
			t.Fatal(err)
		}
		var req wire.UnwrapRequest
		if err := f.Decode(&req); err != nil {
			t.Fatal(err)
		}
		s, i := f.ID>>32, f.ID&(1<<32-1)
		if i != next[s] || !bytes.Equal(req.AAD, f.Secret) || uint64(len(f.Secret)) != i {
			t.Fatalf("frame %d of sender %d came with %d bytes as number %d", i, s, len(f.Secret), next[s])
		}
		next[s]++
	}
	sending.Wait()
}

func TestSendFails(t *testing.T) {
	t.Parallel()
	var sink bytes.Buffer
	c := wire.NewConn(&sink)
	if err := c.Send(1, wire.OpWrap, nil, make(secret.Bytes, wire.MaxFrame)); !errors.Is(err, wire.ErrFrame) {
		t.Errorf("too long: %v, want ErrFrame", err)
	}
	if err := c.Send(1, wire.OpWrap, func() {}, nil); err == nil || !strings.Contains(err.Error(), "encode wrap") {
		t.Errorf("what has no JSON: %v", err)
	}
	if sink.Len() != 0 {
		t.Errorf("%d bytes of it were written", sink.Len())
	}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	for _, meta := range []string{"", "{", `{"id":7}`, `[]`} {
		var req wire.WrapRequest
		if err := (wire.Frame{Kind: wire.OpWrap, Meta: []byte(meta)}).Decode(&req); !errors.Is(err, wire.ErrFrame) {
			t.Errorf("metadata %q: %v, want ErrFrame", meta, err)
		}
	}
}

func TestKindNames(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for k := wire.OpLoad; k <= wire.ReplyError; k++ {
		name := k.String()
		if name == "" || strings.Contains(name, "Kind(") || seen[name] {
			t.Errorf("kind %d is called %q", uint8(k), name)
		}
		seen[name] = true
	}
	for _, k := range []wire.Kind{0, wire.ReplyError + 1} {
		if !strings.Contains(k.String(), "Kind(") {
			t.Errorf("unknown kind %d is called %q", uint8(k), k)
		}
	}
}

func TestRVName(t *testing.T) {
	t.Parallel()
	for rv, want := range map[uint]string{
		0:          "CKR_OK (0x0)",
		0x5:        "CKR_GENERAL_ERROR (0x5)",
		0x1b:       "CKR_ACTION_PROHIBITED (0x1b)",
		0xa0:       "CKR_PIN_INCORRECT (0xa0)",
		0x80000123: "CK_RV 0x80000123",
		0x7777:     "CK_RV 0x7777",
	} {
		if got := wire.RVName(rv); got != want {
			t.Errorf("RVName(0x%x) = %q, want %q", rv, got, want)
		}
	}
}

func TestErrorClasses(t *testing.T) {
	t.Parallel()
	all := []error{kek.ErrUnavailable, kek.ErrCorrupt, kek.ErrPIN, kek.ErrRefused, kek.ErrUnknownKey, kek.ErrAmbiguous}
	for class, want := range map[wire.Class]error{
		wire.ClassToken: kek.ErrUnavailable, wire.ClassRequest: kek.ErrCorrupt, wire.ClassPIN: kek.ErrPIN,
		wire.ClassRefused: kek.ErrRefused, wire.ClassNoKey: kek.ErrUnknownKey, wire.ClassAmbiguous: kek.ErrAmbiguous,
		wire.ClassSetup: kek.ErrUnavailable, 0: kek.ErrUnavailable, 99: kek.ErrUnavailable,
	} {
		err := error(&wire.Error{Class: class, Text: "x"})
		for _, sentinel := range all {
			if got := errors.Is(err, sentinel); got != errors.Is(sentinel, want) {
				t.Errorf("class %s is %q: %t", class, sentinel, got)
			}
		}
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  wire.Error
		want string
	}{
		{wire.Error{Text: "the AAD is empty"}, "the AAD is empty"},
		{wire.Error{Text: "log in", Call: "C_Login", RV: 0xa4}, "log in: C_Login: CKR_PIN_LOCKED (0xa4)"},
	} {
		if diff := cmp.Diff(c.want, c.err.Error()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestSelectorString(t *testing.T) {
	t.Parallel()
	for want, s := range map[string]wire.Selector{
		"":          {},
		`label "a"`: {Label: "a"},
		`label "a", serial "b", manufacturer "c", model "d"`: {Label: "a", Serial: "b", Manufacturer: "c", Model: "d"},
	} {
		if got := s.String(); got != want {
			t.Errorf("%+v prints as %s, want %s", s, got, want)
		}
	}
}
