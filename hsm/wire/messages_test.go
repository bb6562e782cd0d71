package wire_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// messages are all that a frame's metadata can be: what the parent sends with
// each operation, then what the worker answers.
func messages() []any {
	return []any{
		new(wire.LoadRequest), new(wire.LoginRequest), new(wire.CreateRequest), new(wire.ProveRequest), new(wire.WrapRequest),
		new(wire.UnwrapRequest), new(wire.SetUseRequest), new(wire.DestroyRequest), new(wire.ImportBeginRequest),
		new(wire.ImportRequest), new(wire.ImportAbortRequest), new(wire.AuditCreateRequest), new(wire.AuditSignRequest),

		new(wire.TokenInfo), new(wire.LoginReply), new(wire.KeysReply), new(wire.CreateReply), new(wire.ProveReply),
		new(wire.WrapReply), new(wire.SetUseReply), new(wire.ImportState), new(wire.WrappingKey), new(wire.EvidenceReply),
		new(wire.AuditKeysReply), new(wire.AuditKey), new(wire.AuditSignReply), new(wire.Error),

		new(wire.AbandonRequest), new(wire.AbandonReply),
	}
}

// No message is forgotten above: each exported struct that is one end's is there.
func TestMessagesAreListed(t *testing.T) {
	t.Parallel()
	var names []string
	for _, m := range messages() {
		names = append(names, reflect.TypeOf(m).Elem().Name())
	}
	for name := range declared(t, "messages.go") {
		if !slices.Contains(names, name) && !slices.Contains([]string{"Selector", "Key", "Evidence", "Seen"}, name) { // parts of messages
			t.Errorf("%s is in messages.go and not fuzzed", name)
		}
	}
}

func TestDecodeBounds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		meta string
		into any
		ok   bool
	}{
		{`{"sessions":1}`, new(wire.LoginReply), true},
		{`{"sessions":64}`, new(wire.LoginReply), true},
		{`{"sessions":0}`, new(wire.LoginReply), false},
		{`{"sessions":-1}`, new(wire.LoginReply), false},
		{`{"sessions":65}`, new(wire.LoginReply), false},
		{`{"sessions":9223372036854775807}`, new(wire.LoginReply), false},
		{`{"mechanism":5}`, new(wire.ProveReply), true},
		{`{"mechanism":0}`, new(wire.ProveReply), false},
		{`{"mechanism":6}`, new(wire.ProveReply), false},
		{`{"proof":{"mechanism":1}}`, new(wire.CreateReply), true},
		{`{}`, new(wire.CreateReply), false},
		{`{"class":1}`, new(wire.Error), true},
		{`{"class":9}`, new(wire.Error), true},
		{`{"class":0}`, new(wire.Error), false},
		{`{"class":10}`, new(wire.Error), false},
	} {
		err := (wire.Frame{Kind: wire.ReplyOK, Meta: []byte(c.meta)}).Decode(c.into)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, wire.ErrFrame) {
			t.Errorf("%s into %T: %v, want ok %t", c.meta, c.into, err, c.ok)
		}
	}
}

// FuzzMessages: metadata is refused as a malformed frame, or becomes a message
// that means the same after it was sent once more, and that the other end can act
// on without looking.
func FuzzMessages(f *testing.F) {
	for i, m := range messages() {
		b, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	f.Add(uint8(13), []byte(`{"keys":[{"id":"AQ==","checkValue":[1,2,3],"attributes":{"label":"a","bits":256,"decrypt":false},"hmac":true}]}`))
	f.Add(uint8(9), []byte(`{"id":"AQ==","method":"rsa-oaep","hash":"sha1","wrappingKey":"","wrapped":"AA==","checkValue":[255,0,1]}`))
	f.Add(uint8(12), []byte(`{"sessions":-1}`))
	f.Add(uint8(15), []byte(`{"mechanism":1,"tried":["a",""]}`))
	f.Add(uint8(21), []byte(`{"class":3,"call":"C_Login","rv":160,"text":"log in","hint":"h"}`))
	f.Add(uint8(0), []byte(`null`))
	f.Add(uint8(0), []byte(`{"module":"\ud800"}`))
	f.Fuzz(func(t *testing.T, which uint8, meta []byte) {
		all, again := messages(), messages()
		i := int(which) % len(all)
		if err := (wire.Frame{Kind: wire.ReplyOK, Meta: meta}).Decode(all[i]); err != nil {
			if !errors.Is(err, wire.ErrFrame) {
				t.Errorf("an error of no class: %v", err)
			}
			return
		}
		switch m := all[i].(type) {
		case *wire.LoginReply:
			_ = make(chan struct{}, m.Sessions) // as the parent does
		case *wire.ProveReply:
			if !m.Mechanism.Valid() {
				t.Errorf("mechanism %d was accepted", m.Mechanism)
			}
		case *wire.Error:
			classes := []error{kek.ErrUnavailable, kek.ErrCorrupt, kek.ErrPIN, kek.ErrRefused, kek.ErrUnknownKey, kek.ErrAmbiguous, kek.ErrChanged, context.DeadlineExceeded}
			if !slices.ContainsFunc(classes, func(class error) bool { return errors.Is(m, class) }) || strings.HasPrefix(m.Class.String(), "Class(") {
				t.Errorf("class %s was accepted", m.Class)
			}
		}
		// Sent as the ends send it.
		var sent bytes.Buffer
		if err := wire.NewConn(&sent).Send(7, wire.ReplyOK, all[i], nil); err != nil {
			if len(meta) < wire.MaxFrame/8 { // escaping makes text longer
				t.Fatalf("%T that was read can't be sent: %v", all[i], err)
			}
			return
		}
		frame, err := wire.Read(&sent)
		if err != nil {
			t.Fatal(err)
		}
		if err := frame.Decode(again[i]); err != nil {
			t.Fatalf("%T that was sent can't be read: %v\n%s", all[i], err, frame.Meta)
		}
		// An empty list and none mean the same.
		if diff := cmp.Diff(all[i], again[i], equateEmpty); diff != "" {
			t.Errorf("read, and read again (-first +second):\n%s", diff)
		}
	})
}

var equateEmpty = cmp.FilterValues(func(a, b any) bool {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	return x.IsValid() && y.IsValid() && x.Kind() == reflect.Slice && y.Kind() == reflect.Slice && x.Len() == 0 && y.Len() == 0
}, cmp.Comparer(func(any, any) bool { return true }))

// declared lists the structs of a file in this package.
func declared(t *testing.T, name string) map[string]bool {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	structs := map[string]bool{}
	for _, d := range file.Decls {
		if g, ok := d.(*ast.GenDecl); ok {
			for _, spec := range g.Specs {
				if s, ok := spec.(*ast.TypeSpec); ok {
					if _, ok := s.Type.(*ast.StructType); ok {
						structs[s.Name.Name] = true
					}
				}
			}
		}
	}
	return structs
}
