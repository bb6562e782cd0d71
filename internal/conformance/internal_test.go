package conformance

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestIsFQDN(t *testing.T) {
	t.Parallel()
	label63 := strings.Repeat("a", 63)
	tests := []struct {
		name string
		key  string
		want bool
	}{
		{"two labels", "kms.example", true},
		{"digits and hyphens", "v1.my-kms.2x.example", true},
		{"a closing dot", "kms.example.", true},
		{"the longest label", label63 + ".example", true},
		{"the longest name", strings.Repeat(label63+".", 3) + label63[:61], true},
		{"nothing", "", false},
		{"one label", "kms", false},
		{"one label with a closing dot", "kms.", false},
		{"two closing dots", "kms.example..", false},
		{"an empty label", "kms..example", false},
		{"a label too long", label63 + "a.example", false},
		{"a name too long", strings.Repeat(label63+".", 3) + label63[:62], false},
		{"upper case", "Kms.example", false},
		{"an underscore", "my_kms.example", false},
		{"a path", "kms.example/version", false},
		{"a hyphen first", "-kms.example", false},
		{"a hyphen last", "kms-.example", false},
		{"not ASCII", "kmß.example", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := isFQDN(tt.key); got != tt.want {
				t.Errorf("isFQDN(%q) = %v", tt.key, got)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	tests := []struct {
		code              codes.Code
		refusal, oversize Outcome
	}{
		{codes.InvalidArgument, OK, OK},
		{codes.NotFound, OK, OK},
		{codes.FailedPrecondition, OK, OK},
		{codes.PermissionDenied, OK, OK},
		{codes.OutOfRange, OK, OK},
		{codes.DataLoss, OK, OK},
		{codes.Unavailable, Fail, Fail},
		{codes.DeadlineExceeded, Fail, Fail},
		{codes.Canceled, Fail, Fail},
		{codes.ResourceExhausted, Warn, OK},
		{codes.Unknown, Warn, Warn},
		{codes.Internal, Warn, Warn},
		{codes.Unimplemented, Warn, Warn},
	}
	for _, tt := range tests {
		t.Run(tt.code.String(), func(t *testing.T) {
			t.Parallel()
			err := status.Error(tt.code, "because")
			if got, _ := judgeRefusal(err); got != tt.refusal {
				t.Errorf("judgeRefusal: %s, want %s", got, tt.refusal)
			}
			if got, _ := judgeOversize(err); got != tt.oversize {
				t.Errorf("judgeOversize: %s, want %s", got, tt.oversize)
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"a status", status.Error(codes.NotFound, "no key"), `NotFound "no key"`},
		{"a plain error", errors.New("no key"), `Unknown "no key"`},
		{"control characters", status.Error(codes.Internal, "a\n\x1b[31mb"), `Internal "a\n\x1b[31mb"`},
		{"a long text", status.Error(codes.Internal, strings.Repeat("x", 200)), `Internal "` + strings.Repeat("x", 160) + `"...`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, describe(tt.err)); diff != "" {
				t.Errorf("describe (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFindings(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		note       func(*findings)
		want       Outcome
		wantDetail string
	}{
		{"nothing", func(*findings) {}, OK, "fine"},
		{"an OK is no problem", func(f *findings) { f.addf(OK, "good") }, OK, "fine"},
		{"a warning", func(f *findings) { f.warnf("w%d", 1) }, Warn, "w1"},
		{"a failure hides warnings", func(f *findings) { f.warnf("w"); f.failf("f1"); f.failf("f2") }, Fail, "f1; f2"},
		{"many", func(f *findings) {
			for i := range 5 {
				f.failf("f%d", i)
			}
		}, Fail, "f0; f1; f2; and 2 more like these"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var f findings
			tt.note(&f)
			outcome, detail := f.result("fine")
			if outcome != tt.want || detail != tt.wantDetail {
				t.Errorf("got %s %q, want %s %q", outcome, detail, tt.want, tt.wantDetail)
			}
		})
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		n, limit int
		want     []int
	}{
		{"nothing to pick from", 0, 4, []int{}},
		{"one", 1, 4, []int{0}},
		{"all", 4, 9, []int{0, 1, 2, 3}},
		{"both ends", 100, 2, []int{0, 99}},
		{"evenly", 10, 4, []int{0, 3, 6, 9}},
		{"one of many", 10, 1, []int{0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, spread(tt.n, tt.limit)); diff != "" {
				t.Errorf("spread(%d, %d) (-want +got):\n%s", tt.n, tt.limit, diff)
			}
		})
	}
}

func TestNewUIDIsAUUID(t *testing.T) {
	t.Parallel()
	a, b := newUID(), newUID()
	if len(a) != 36 || a[14] != '4' || !strings.ContainsAny(a[19:20], "89ab") || a == b {
		t.Errorf("uids %s and %s", a, b)
	}
}

func FuzzSocketAddress(f *testing.F) {
	for _, seed := range []string{"", "/run/kekd/kekd.sock", "unix:///run/kekd/kekd.sock", "unix:///@kms", "unix://x", "tcp://x", "@"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, endpoint string) {
		address, err := socketAddress(endpoint)
		if err != nil {
			return
		}
		if address == "" || len(address) > maxSocketPath {
			t.Errorf("socketAddress(%q) = %q", endpoint, address)
		}
		// What is dialled must itself be a spelling of the same socket.
		if again, err := socketAddress(address); err == nil && again != address {
			t.Errorf("socketAddress(%q) = %q, and of that %q", endpoint, address, again)
		}
	})
}
