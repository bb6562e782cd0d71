package statuspage

import (
	"math"
	"time"

	"kekd/internal/health"
	"kekd/internal/history"
	"kekd/internal/httpapi"
	"kekd/internal/kek"
	"kekd/internal/version"
)

// noon is when all test pages are made.
var noon = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

func facts() Facts {
	return Facts{
		Node: "cp-1", Started: noon.Add(-26*time.Hour - 5*time.Minute), Ring: "k8s-kek",
		Refresh: 10 * time.Second, Grace: 10 * time.Minute, SeedMaxAge: 24 * time.Hour, Audit: true,
	}
}

// bounds are those of package metrics.
var bounds = []float64{
	10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1, 2.5, 5, 10,
}

// took adds n operations that took about as long, spread over three buckets.
func took(s *history.Series, n int, d time.Duration, failed int) {
	s.Ended += uint64(n)
	s.Failed += uint64(failed)
	s.Timed += uint64(n)
	for i := range n {
		t := d.Seconds() * math.Pow(1.9, float64(i*7%5)/2)
		for b, bound := range bounds {
			if t <= bound {
				s.Within[b]++
			}
		}
	}
}

// hour is a made-up hour of samples. state tells the health so many minutes ago.
func hour(state func(minutesAgo int) health.State) []history.Sample {
	var all []history.Sample
	var s history.Sample
	for i := range 361 {
		ago := time.Duration(360-i) * history.Interval
		s.At = noon.Add(-ago)
		s.State = state(int(ago / time.Minute))
		wave := 3 + 2*math.Sin(float64(i)/25)
		down := s.State != health.Ready
		failed := 0
		if s.State != health.Ready && s.State != health.Coasting {
			failed = int(wave)
		}
		took(&s.Encrypt, int(wave), 40*time.Microsecond, failed)
		took(&s.Decrypt, int(4*wave), 60*time.Microsecond, failed)
		s.Hits += uint64(4 * wave)
		if i%9 == 0 {
			s.Misses++
			s.Hits--
			if down {
				took(&s.Unwrap, 1, 900*time.Millisecond, 1)
				took(&s.HSM, 1, 900*time.Millisecond, 1)
			} else {
				took(&s.Unwrap, 1, 6*time.Millisecond, 0)
				took(&s.HSM, 1, 6*time.Millisecond, 0)
			}
		}
		if down {
			took(&s.HSM, 1, 700*time.Millisecond, 1)
		} else {
			took(&s.HSM, 2, 5*time.Millisecond, 0)
		}
		all = append(all, s)
	}
	return all
}

func key(id byte, state kek.State, activated time.Time) kek.Info {
	return kek.Info{Ring: "k8s-kek", ID: kek.ID("\x01\x00\x00\x00\x00\x68\xa1\xb2\xc3\xd4\xe5\xf6\x07\x18\x29\x3a" + string(rune(id))), CheckValue: kek.CheckValue{0x3f, 0xa2, id}, State: state, Activation: activated}
}

// story is everything that a page is made from.
type story struct {
	status  httpapi.Status
	reading history.Reading
	broken  error
	facts   Facts
}

// stories are one for each state, and a few more.
func stories() map[string]story {
	const down = "the HSM is unavailable"
	return map[string]story{
		"starting": tell(health.Starting, "kekd has not used the HSM yet", func(s *story) {
			s.facts.Started = noon.Add(-42 * time.Second)
			s.status.Health.Since, s.status.Health.LastSuccess = s.facts.Started, time.Time{}
			s.status.KeyRing, s.status.Policy, s.status.Token = nil, nil, nil
			s.status.RingProblem = "list the key ring: initialise the PKCS#11 module /usr/lib/softhsm/libsofthsm2.so: C_Initialize: CKR_DEVICE_ERROR (0x30) (next try in 121ms)"
			s.status.Seeds = httpapi.Seeds{Mode: "seeded", MaxUses: 1 << 20, Capacity: 4096}
			s.reading = history.Reading{Bounds: bounds, Samples: []history.Sample{
				{At: noon.Add(-42 * time.Second), State: health.Starting}, {At: noon, State: health.Starting},
			}, Changes: []history.Change{
				{At: noon.Add(-41 * time.Second), Last: noon.Add(-1 * time.Second), Subject: history.OfWorker, Level: history.Fault, Text: "did not come up (token)", Count: 62},
			}}
		}),
		"ready": tell(health.Ready, "", func(*story) {}),
		"coasting": tell(health.Coasting, down, func(s *story) {
			h := &s.status.Health
			h.Since, h.LastSuccess, h.CoastingUntil = noon.Add(-7*time.Minute), noon.Add(-7*time.Minute-4*time.Second), noon.Add(2*time.Minute+56*time.Second)
			s.status.RingProblem = "list the key ring: C_OpenSession: CKR_DEVICE_ERROR (0x30)"
			s.status.Seeds.BreakerOpen, s.status.Seeds.Waiting = true, 3
			s.status.Token.WorkerPID = 0
			s.reading.Samples = hour(func(ago int) health.State {
				if ago < 7 {
					return health.Coasting
				}
				return health.Ready
			})
			s.reading.Now.SessionsWaiting = 2
			s.reading.Now.WorkerRestarts, s.reading.Now.WorkerStartsFailed = 1, 412
			s.reading.Changes = append([]history.Change{
				{At: noon.Add(-7 * time.Minute), Last: noon.Add(-time.Second), Subject: history.OfWorker, Level: history.Fault, Text: "did not come up (token)", Count: 412},
				{At: noon.Add(-7 * time.Minute), Last: noon.Add(-7 * time.Minute), Subject: history.OfHealth, Level: history.Warning, Text: "ready to coasting: the HSM is unavailable", Count: 1},
				{At: noon.Add(-7 * time.Minute), Last: noon.Add(-7 * time.Minute), Subject: history.OfBreaker, Level: history.Warning, Text: "open: requests that need the HSM fail at once", Count: 1},
			}, s.reading.Changes...)
		}),
		"unready": tell(health.Unready, "the token refused the PIN; it is not tried again before it is replaced or the latch is cleared", func(s *story) {
			s.status.Health.Since, s.status.Health.LastSuccess = noon.Add(-12*time.Minute), noon.Add(-12*time.Minute-9*time.Second)
			s.reading.Now.PINLatched, s.reading.Now.AuditFailing, s.reading.Now.AuditLost = true, []string{"sign"}, 3
			s.reading.Samples = hour(func(ago int) health.State {
				if ago < 12 {
					return health.Unready
				}
				return health.Ready
			})
		}),
		"revoked": tell(health.Revoked, "the KEK is disabled, scheduled for destruction or gone", func(s *story) {
			s.status.Health.Since = noon.Add(-90 * time.Second)
			s.status.KeyRing.Keys[1].State = "scheduled-for-destruction"
			s.status.KeyRing.Keys[1].DestroyAfter = noon.Add(30 * 24 * time.Hour)
			s.status.RingProblem = "key k8s-kek/0100 is disabled, and no newer key is activated"
			s.status.Seeds = httpapi.Seeds{Mode: "seeded", MaxUses: 1 << 20, Capacity: 4096, Cached: 11}
			s.reading.Samples = hour(func(ago int) health.State {
				if ago < 2 {
					return health.Revoked
				}
				return health.Ready
			})
		}),
		"direct": tell(health.Ready, "", func(s *story) {
			s.status.Seeds = httpapi.Seeds{Mode: "direct", Mechanism: "aes-kwp", DirectUses: 300_000_000}
			s.facts.Audit, s.facts.Node = false, ""
		}),
	}
}

// tell makes the story of a kekd that is well, in this state, and changes it.
func tell(state health.State, reason string, edit func(*story)) story {
	ring := &kek.Ring{Label: "k8s-kek", Keys: []kek.Info{
		key(0x11, kek.Retired, noon.Add(-190*24*time.Hour)), key(0x22, kek.Primary, noon.Add(-100*24*time.Hour)), key(0x33, kek.Pending, noon.Add(29*time.Minute)),
	}}
	s := story{facts: facts(), status: httpapi.Status{
		Time: noon,
		Health: health.Report{
			State: state, Reason: reason, Since: noon.Add(-26 * time.Hour), LastSuccess: noon.Add(-4 * time.Second),
		},
		Version: version.Info{Version: "v0.4.0", Revision: "1f2e3d4c", Time: "2026-10-30T09:12:44Z", Go: "go1.26.0"},
		Seeds: httpapi.Seeds{
			Mode: "seeded", Mechanism: "aes-gcm/caller-iv", Created: noon.Add(-17 * time.Hour), Uses: 241_337, MaxUses: 1 << 20, Cached: 212, Capacity: 4096,
		},
		KeyRing: httpapi.NewKeyRing(ring, noon.Add(-3*time.Second)),
		Policy:  []string{"key " + ring.Keys[1].KeyID() + " has been the primary for 100 days, and keyRing.policy.maxAge is 90 days"},
		Token:   &httpapi.Token{Label: "kekd", Serial: "4a1b2c3d", Manufacturer: "SoftHSM project", Model: "SoftHSM v2", Library: "Implementation of PKCS11 2.6", WorkerPID: 4711},
	}}
	if state.Serves() {
		s.status.Health.KeyID = ring.Keys[1].KeyID()
	}
	for i := range s.status.KeyRing.Keys {
		if i != 0 {
			s.status.KeyRing.Keys[i].Proven, s.status.KeyRing.Keys[i].Mechanism = true, "aes-gcm/caller-iv"
		}
	}
	s.reading = history.Reading{
		Bounds:  bounds,
		Samples: hour(func(int) health.State { return health.Ready }),
		Uses: map[string]history.Growth{
			s.status.KeyRing.Keys[0].KeyIDHash: {Count: 318, Last: noon.Add(-31 * time.Minute)},
			s.status.KeyRing.Keys[1].KeyIDHash: {Count: 1_204_551, Last: noon.Add(-2 * time.Second)},
		},
		Records: history.Growth{Count: 1_445_888, Last: noon.Add(-2 * time.Second)},
		Now: history.Now{
			SessionsInUse: 1, SessionsLimit: 4, Rotations: 1, Renewals: 1, Evictions: 14,
			AuditRecords: 1_445_888, AuditSigned: noon.Add(-21 * time.Second), AuditSequence: 1_446_001,
		},
		Changes: []history.Change{
			{At: noon.Add(-29 * time.Minute), Last: noon.Add(-29 * time.Minute), Subject: history.OfKey, Level: history.Note, Text: s.status.KeyRing.Keys[2].KeyID + " is new on the ring: pending", Count: 1},
			{At: noon.Add(-17 * time.Hour), Last: noon.Add(-17 * time.Hour), Subject: history.OfSeed, Level: history.Note, Text: "renewed under the same key", Count: 1},
			{At: noon.Add(-26 * time.Hour), Last: noon.Add(-26 * time.Hour), Subject: history.OfHealth, Level: history.Good, Text: "starting to ready", Count: 1},
			{At: noon.Add(-26 * time.Hour), Last: noon.Add(-26 * time.Hour), Subject: history.OfRing, Level: history.Note, Text: "first read: 2 keys", Count: 1},
		},
	}
	edit(&s)
	if n := len(s.reading.Samples); n > 0 {
		s.reading.Now.Sample = s.reading.Samples[n-1]
	}
	return s
}
