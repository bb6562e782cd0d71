package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	kmsv2 "k8s.io/kms/apis/v2"

	"kekd/hsm"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/setup"
	"kekd/internal/state"
	"kekd/keycache"
)

// coldCallers is how many callers decrypt at once, as an apiserver's LIST does.
const coldCallers = 32

// manySeeds are decrypted once, whatever -cold-rounds says: it takes long enough.
const manySeeds = 1000

// cold is the decryption of distinct seeds by a plugin that has just started.
type cold struct {
	HSMLatency float64    `json:"hsmLatencyMilliseconds"`
	Seeds      int        `json:"seeds"`
	Cold       coldResult `json:"cold"`
	// Warm is the same once more, and Naive what the naive plugin makes of as many
	// values of its own.
	Warm  coldResult `json:"warm"`
	Naive coldResult `json:"naive"`
}

type coldResult struct {
	Seconds       float64 `json:"seconds"`
	HSMOperations int     `json:"hsmOperations"`
}

// measureCold measures with each number of seeds at each latency.
func (s *stand) measureCold(ctx context.Context, say func(string, ...any)) ([]cold, error) {
	if err := s.setLatency(0); err != nil {
		return nil, err
	}
	most := slices.Max(s.o.seeds)
	say("making %d seeds", most)
	plaintext := bytes.Repeat([]byte{7}, seedSize)
	ours, err := s.distinctSeeds(ctx, most, plaintext)
	if err != nil {
		return nil, fmt.Errorf("make seeds: %w", err)
	}
	naive := s.targets[slices.IndexFunc(s.targets, func(t *target) bool { return t.name == naiveName })]
	theirs := make([]*kmsv2.EncryptResponse, most)
	for i := range theirs {
		if theirs[i], err = naive.clients[0].Encrypt(ctx, &kmsv2.EncryptRequest{Plaintext: plaintext, Uid: "bench"}); err != nil {
			return nil, err
		}
	}
	d, err := s.configure(ctx, "cold", seededName)
	if err != nil {
		return nil, err
	}
	var list []cold
	for _, latency := range s.o.latencies {
		for _, n := range s.o.seeds {
			say("%d seeds, HSM + %v", n, latency)
			rounds := s.o.coldRounds
			if n > manySeeds {
				rounds = 1
			}
			var first, again, other []coldResult
			for range rounds {
				if err := s.setLatency(0); err != nil { // the start is not what is measured
					return nil, err
				}
				if err := d.Start(ctx); err != nil {
					return nil, err
				}
				err := s.setLatency(latency)
				if err == nil {
					err = s.coldRound(ctx, d.Socket, ours[:n], plaintext, &first, &again)
				}
				if err := errors.Join(err, d.Stop()); err != nil {
					return nil, err
				}
				took, err := decryptAll(ctx, naive.clients[0], theirs[:n], plaintext, naive.hsm)
				if err != nil {
					return nil, err
				}
				other = append(other, took)
			}
			list = append(list, cold{HSMLatency: milliseconds(latency), Seeds: n, Cold: middle(first), Warm: middle(again), Naive: middle(other)})
		}
	}
	return list, nil
}

// coldRound decrypts all values twice, the first time with a cold cache.
func (s *stand) coldRound(ctx context.Context, socket string, values []*kmsv2.EncryptResponse, plaintext []byte, first, again *[]coldResult) error {
	conn, err := dial(socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	client := kmsv2.NewKeyManagementServiceClient(conn)
	for _, to := range []*[]coldResult{first, again} {
		r, err := decryptAll(ctx, client, values, plaintext, moduleCounter(s.counts("cold")))
		if err != nil {
			return err
		}
		*to = append(*to, r)
	}
	return nil
}

// middle is the result of the middle round.
func middle(rounds []coldResult) coldResult {
	slices.SortFunc(rounds, func(a, b coldResult) int {
		if a.Seconds < b.Seconds {
			return -1
		}
		return 1
	})
	return rounds[len(rounds)/2]
}

// decryptAll decrypts each value once.
func decryptAll(ctx context.Context, client kmsv2.KeyManagementServiceClient, values []*kmsv2.EncryptResponse, plaintext []byte, counter hsmCounter) (coldResult, error) {
	before, err := counter.read(ctx)
	if err != nil {
		return coldResult{}, err
	}
	var next atomic.Int64
	errs := make([]error, coldCallers)
	var running sync.WaitGroup
	begun := time.Now()
	for caller := range coldCallers {
		running.Go(func() {
			for errs[caller] == nil {
				i := int(next.Add(1)) - 1
				if i >= len(values) {
					return
				}
				errs[caller] = decryptOne(ctx, client, values[i], plaintext)
			}
		})
	}
	running.Wait()
	took := time.Since(begun)
	if err := errors.Join(errs...); err != nil {
		return coldResult{}, err
	}
	after, err := counter.read(ctx)
	return coldResult{Seconds: took.Seconds(), HSMOperations: int(after - before)}, err
}

func decryptOne(ctx context.Context, client kmsv2.KeyManagementServiceClient, sealed *kmsv2.EncryptResponse, plaintext []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := client.Decrypt(ctx, &kmsv2.DecryptRequest{Ciphertext: sealed.GetCiphertext(), KeyId: sealed.GetKeyId(), Uid: "bench"})
	if err == nil && !bytes.Equal(resp.GetPlaintext(), plaintext) {
		return errWrongPlaintext
	}
	return err
}

// distinctSeeds makes ciphertexts of kekd's, each under a seed of its own. kekd
// itself would need a renewal of its seed for each; so its parts are used here.
func (s *stand) distinctSeeds(ctx context.Context, n int, plaintext []byte) (_ []*kmsv2.EncryptResponse, err error) {
	d, err := s.configure(ctx, "seeds", seededName)
	if err != nil {
		return nil, err
	}
	cfg, err := config.Load(d.Config)
	if err != nil {
		return nil, err
	}
	latch, err := state.Open(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	tokenConfig, err := setup.Token(cfg, latch, zap.NewNop(), nil)
	if err != nil {
		return nil, err
	}
	token := hsm.New(tokenConfig)
	defer token.Close()
	keys, err := token.Keys(ctx)
	if err != nil {
		return nil, err
	}
	ring, err := hsm.BuildRing(cfg.KeyRing.Label, keys, hsm.RingOptions{Now: time.Now()})
	if err != nil {
		return nil, err
	}
	primary, ok := ring.Primary()
	if !ok {
		return nil, errors.New("the ring has no primary")
	}
	mechanism, _, err := token.Prove(ctx, primary.ID)
	if err != nil {
		return nil, err
	}
	sealer, err := keycache.New(keycache.Config{
		Ring: cfg.KeyRing.Label, Mode: keycache.Seeded, MaxAge: time.Hour, MaxUses: 1 << 20, CacheSize: 1,
	}, token)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sealer.Close()) }()
	sealer.SetRing(ring)
	values := make([]*kmsv2.EncryptResponse, n)
	for i := range values {
		if err := sealer.Use(ctx, primary, mechanism); err != nil { // a new seed each time
			return nil, err
		}
		var sealed kek.Sealed
		if sealed, err = sealer.Seal(ctx, plaintext); err != nil {
			return nil, err
		}
		values[i] = &kmsv2.EncryptResponse{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyID}
	}
	return values, nil
}
