package keycache

import (
	"testing"

	"kekd/internal/kek"
)

// A context that asks is told where a request was served from.
func TestSource(t *testing.T) {
	seeded, direct := readySealer(t, seededConfig(), &fakeHSM{}), readySealer(t, directConfig(), &fakeHSM{})
	own := seal(t, seeded, "own")
	other := strangers(t, 1, keyA)[0]
	straight := seal(t, direct, "direct")
	for _, c := range []struct {
		name   string
		s      *Sealer
		sealed kek.Sealed
		want   kek.Source
	}{
		{"its own seed", seeded, own, kek.FromSeed},
		{"a seed that it meets", seeded, other, kek.FromHSM},
		{"that seed again", seeded, other, kek.FromCache},
		{"a direct ciphertext", seeded, straight, kek.FromHSM},
		{"direct mode", direct, straight, kek.FromHSM},
		{"a seed in direct mode", direct, own, kek.FromHSM},
	} {
		ctx := &kek.Request{Context: t.Context()}
		if _, err := c.s.Open(ctx, c.sealed); err != nil || ctx.Source != c.want {
			t.Errorf("open by %s: from %q, want %q (%v)", c.name, ctx.Source, c.want, err)
		}
	}
	for s, want := range map[*Sealer]kek.Source{seeded: kek.FromSeed, direct: kek.FromHSM} {
		ctx := &kek.Request{Context: t.Context()}
		if _, err := s.Seal(ctx, []byte("p")); err != nil || ctx.Source != want {
			t.Errorf("seal: from %q, want %q (%v)", ctx.Source, want, err)
		}
	}
	kek.NoteSource(t.Context(), kek.FromSeed) // nobody asks
}
