package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.yaml.in/yaml/v3"
)

// holder has a secret where a structure that is logged by mistake would have it.
type holder struct {
	Name string
	PIN  Bytes
	Ptr  *Bytes
	Map  map[string]Bytes
	List []Bytes
}

func TestBytesNeverPrint(t *testing.T) {
	pin := Bytes("83kd02ls")
	values := map[string]any{
		"value": pin, "pointer": &pin, "slice": []Bytes{pin},
		"struct": holder{Name: "n", PIN: pin, Ptr: &pin, Map: map[string]Bytes{"k": pin}, List: []Bytes{pin}},
	}
	renderings := map[string]func(any) (string, error){
		"json": func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
		"yaml": func(v any) (string, error) { b, err := yaml.Marshal(v); return string(b), err },
		"zap": func(v any) (string, error) {
			var out bytes.Buffer
			core := zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(&out), zap.DebugLevel)
			zap.New(core).Info("m", zap.Any("v", v), zap.Reflect("r", v))
			return out.String(), nil
		},
	}
	// Not %p: for a verb that does not fit a structure fmt passes over all
	// methods; go vet finds such a call.
	for verb := range strings.SplitSeq("v +v #v s q x X d c U b o O t e T", " ") {
		renderings["%"+verb] = func(v any) (string, error) { return fmt.Sprintf("%"+verb, v), nil }
	}
	leaks := []string{"83kd02ls", "ODNrZDAybHM", "38336b64", "38336B64", "56 51 107", "0x38"}
	for name, render := range renderings {
		for what, v := range values {
			out, err := render(v)
			if err != nil {
				t.Errorf("%s of a %s: %v", name, what, err)
			}
			for _, leak := range leaks {
				if strings.Contains(out, leak) {
					t.Errorf("%s of a %s shows the secret: %s", name, what, out)
				}
			}
		}
	}
}

func TestWipe(t *testing.T) {
	b := Bytes("secret")
	b.Wipe()
	if !bytes.Equal(b, make([]byte, 6)) {
		t.Error("content is left")
	}
}
