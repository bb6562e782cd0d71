package statuspage

import (
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"

	"kekd/internal/health"
	"kekd/internal/history"
	"kekd/internal/httpapi"
	"kekd/internal/version"
)

// view is what the template shows. Everything is spelled out here, so that the
// template only lays it out.
type view struct {
	Style  template.CSS
	Reload string // in seconds; empty for never
	Icon   template.URL

	Node string
	// Version is the short one, Build what it was built from.
	Version, Build string
	Now            moment
	Uptime         string
	Started        moment

	Health    healthView
	Attention []finding
	Strip     strip

	Ring     ringView
	Traffic  []trafficTable
	Plots    []plot
	NoData   string // why there are no numbers
	Seeds    seedsView
	HSM      hsmView
	Audit    auditView
	Changes  []changeView
	Older    []changeView
	Interval string
}

// moment is a time as the page shows it.
type moment struct {
	// Machine is for <time datetime>, Clock for people, Ago how long ago or ahead.
	Machine, Clock, Ago string
}

// fact is a name and a value.
type fact struct{ Name, Value, Note string }

// finding is something that asks for attention, and which page says what to do.
type finding struct {
	Level         string
	Text, Runbook string
}

// bar is a value against its limit.
type bar struct {
	Name, Text, Note string
	// Width and Mark are in percent; Mark is 0 for none.
	Width, Mark float64
	Level       string
}

type healthView struct {
	// State is the class: one of the five states, or unknown.
	State, Title, Meaning, Reason string
	Detail                        string
	Since, LastSuccess            moment
	KeyID, ShortKeyID             string
	Runbook                       string
	// Left is how long coasting goes on; nil in other states.
	Left *bar
}

// newView puts together what there is to show. broken is why there are no numbers; nil
// if there are.
func newView(s httpapi.Status, r history.Reading, broken error, f Facts) view {
	now := s.Time
	v := view{
		Node: f.Node, Version: s.Version.Version, Build: buildOf(s.Version), Icon: iconOf(s.Health.State),
		Now: at(now, now), Uptime: span(now.Sub(f.Started)), Started: at(f.Started, now),
		Health: newHealth(s, r.Now, f), Ring: newRing(s, r, f), Seeds: newSeeds(s, r, f), HSM: newHSM(s, r.Now), Audit: newAudit(r, f, now),
		Interval: span(history.Interval),
	}
	v.Attention = newAttention(s, r.Now)
	if broken != nil {
		// The text may be long and is in the log; nobody on call needs it here.
		v.NoData = "The metrics cannot be read, so there are no numbers; kekd's log has the reason."
	} else {
		v.Traffic = []trafficTable{newTraffic("5 minutes", 5*time.Minute, r), newTraffic("hour", history.Window, r)}
		v.Plots = newPlots(r)
		v.Strip = newStrip(r)
	}
	for i, c := range r.Changes {
		if row := newChange(c, now); i < recentChanges {
			v.Changes = append(v.Changes, row)
		} else {
			v.Older = append(v.Older, row)
		}
	}
	return v
}

// buildOf tells what a version was built from; nothing where the build does not tell.
func buildOf(v version.Info) string {
	made, err := time.Parse(time.RFC3339, v.Time)
	if err != nil {
		return ""
	}
	revision, dirty := strings.CutSuffix(v.Revision, "-dirty")
	text := "commit " + shorten(revision, 12, 0) + " of " + made.UTC().Format("2 Jan 2006")
	if dirty {
		text += ", changed since"
	}
	if v.FIPS140 != "" {
		text += ", FIPS 140-3 module " + v.FIPS140
	}
	return text
}

// at spells a time; the zero time is nothing.
func at(t, now time.Time) moment {
	if t.IsZero() {
		return moment{}
	}
	t, now = t.UTC(), now.UTC()
	m := moment{Machine: t.Format(time.RFC3339), Clock: t.Format("15:04:05") + " UTC"}
	if y, mo, d := t.Date(); !sameDay(now, y, mo, d) {
		m.Clock = t.Format("2 Jan 2006, 15:04") + " UTC"
	}
	switch ahead := t.Sub(now); {
	case ahead > -time.Second && ahead < time.Second:
		m.Ago = "just now"
	case ahead > 0:
		m.Ago = "in " + span(ahead)
	default:
		m.Ago = span(ahead) + " ago"
	}
	return m
}

func sameDay(t time.Time, y int, mo time.Month, d int) bool {
	ty, tmo, td := t.Date()
	return ty == y && tmo == mo && td == d
}

const runbooks = "docs/runbooks/"

// states is what the five states mean to whoever is on call.
var states = map[health.State]struct{ title, meaning, runbook string }{
	health.Starting: {"Starting", "No key is proven yet. Encrypt, Decrypt and Status fail until one is.", runbooks + "unready.md"},
	health.Ready:    {"Ready", "Encrypt, Decrypt and Status are served.", ""},
	health.Coasting: {"Coasting", "The HSM fails. Status, Encrypt and warm Decrypts are served from memory; cold Decrypts fail at once.", runbooks + "hsm-down.md"},
	health.Unready:  {"Not ready", "Status and Encrypt fail: kube-apiserver stops writing within three minutes. Warm Decrypts are served.", runbooks + "unready.md"},
	health.Revoked:  {"Revoked", "The key in use was withdrawn. Status, Encrypt and Decrypts under it fail until a newer key activates.", runbooks + "key-revoked.md"},
}

func newHealth(s httpapi.Status, n history.Now, f Facts) healthView {
	h := s.Health
	v := healthView{State: "unknown", Title: string(h.State), Reason: h.Reason, Since: at(h.Since, s.Time), LastSuccess: at(h.LastSuccess, s.Time)}
	if known, ok := states[h.State]; ok {
		v.State, v.Title, v.Meaning, v.Runbook = string(h.State), known.title, known.meaning, known.runbook
	}
	if n.PINLatched {
		v.Runbook = runbooks + "pin-latched.md"
	}
	if h.State != health.Ready {
		v.Detail = s.RingProblem
	}
	if h.KeyID != "" {
		v.KeyID, v.ShortKeyID = h.KeyID, shortKeyID(h.KeyID)
	}
	if left := h.CoastingUntil.Sub(s.Time); h.State == health.Coasting && left >= 0 {
		v.Left = &bar{
			Name: "Time left", Text: span(left), Note: "of " + span(f.Grace) + ", until " + at(h.CoastingUntil, s.Time).Clock,
			Width: share(float64(left), float64(f.Grace)), Level: level(left < f.Grace/4, left < f.Grace),
		}
	}
	return v
}

// level is that of a bar: fault, warning or none.
func level(fault, warning bool) string {
	switch {
	case fault:
		return history.Fault.String()
	case warning:
		return history.Warning.String()
	}
	return history.Note.String()
}

// share is part of whole in percent, from 0 to 100.
func share(part, whole float64) float64 {
	if whole <= 0 {
		return 0
	}
	return math.Round(1000*min(max(part/whole, 0), 1)) / 10
}

// newAttention lists what is wrong beside the health, worst first.
func newAttention(s httpapi.Status, n history.Now) []finding {
	var all []finding
	add := func(on bool, l history.Level, runbook, format string, args ...any) {
		if on {
			all = append(all, finding{l.String(), fmt.Sprintf(format, args...), runbooks + runbook})
		}
	}
	add(n.PINLatched, history.Fault, "pin-latched.md", "The token refused the PIN. It is not tried again before the PIN's source holds another, or kekctl pin unlatch.")
	add(len(n.AuditFailing) > 0, history.Fault, "audit-failing.md", "A part of the audit trail fails: %s.", strings.Join(n.AuditFailing, ", "))
	add(n.AuditLost > 0, history.Fault, "audit-failing.md", "%s of the audit trail could not be written since kekd started.", plural(n.AuditLost, "record"))
	add(n.Panics > 0, history.Fault, "panics.md", "%s ended in a panic since kekd started; each is a bug.", plural(n.Panics, "request"))
	// In any other state the problem stands beside the health.
	add(s.RingProblem != "" && s.Health.State == health.Ready, history.Warning, "ring-problem.md", "The last look at the key ring did not end with a key in use: %s", s.RingProblem)
	add(s.Seeds.BreakerOpen, history.Warning, "hsm-down.md", "The breaker is open: the HSM did not answer lately, so requests that need it fail at once.")
	add(n.SessionsLimit > 0 && n.SessionsWaiting > 0 && n.SessionsInUse >= n.SessionsLimit, history.Warning, "sessions-exhausted.md",
		"All sessions of the HSM are in use, and %s for one.", waits(n.SessionsWaiting))
	for _, p := range s.Policy {
		add(true, history.Warning, "key-policy.md", "Policy: %s.", p)
	}
	add(n.CallersRefused > 0, history.Warning, "callers-refused.md", "%s of a caller that is not allowed, since kekd started.", plural(n.CallersRefused, "connection"))
	add(n.ConnectionsRefused > 0, history.Warning, "connections-refused.md", "%s of an allowed caller closed since kekd started, for too many were open.", plural(n.ConnectionsRefused, "connection"))
	add(n.LogLinesLost > 0, history.Warning, "log-lines-lost.md", "%s of the log lost since kekd started, for they were not read in time.", plural(n.LogLinesLost, "line"))
	return all
}

func waits(n uint64) string {
	if n == 1 {
		return "one call waits"
	}
	return count(n) + " calls wait"
}

// ringView is the key ring.
type ringView struct {
	Label   string
	Read    moment
	Every   string
	Keys    []keyView
	Facts   []fact
	Problem string
	Policy  []string
}

type keyView struct {
	// State is the class, and Primary whether it is that one.
	State   string
	Primary bool
	// KeyID is whole, Short abbreviated.
	KeyID, Short string
	Activated    moment
	// Age is how long ago, or how far ahead, it activated.
	Age       string
	Destroy   string
	Proven    string
	Problem   string
	Decrypts  string
	LastUsed  moment
	NeverUsed bool
}

func newRing(s httpapi.Status, r history.Reading, f Facts) ringView {
	v := ringView{Label: f.Ring, Every: span(f.Refresh), Problem: s.RingProblem, Policy: s.Policy}
	if f.Refresh < time.Second {
		v.Every = latency(f.Refresh)
	}
	n := r.Now
	v.Facts = []fact{
		{"Rotations", count(n.Rotations), failures(n.RotationsFailed)},
		{"Seed renewals", count(n.Renewals), failures(n.RenewalsFailed)},
	}
	if s.KeyRing == nil {
		return v
	}
	v.Read = at(s.KeyRing.Read, s.Time)
	for i := range s.KeyRing.Keys {
		// The newest first: the primary is what people look for.
		v.Keys = append(v.Keys, newKey(s.KeyRing.Keys[len(s.KeyRing.Keys)-1-i], r.Uses, s.Time))
	}
	return v
}

func newKey(k httpapi.Key, uses map[string]history.Growth, now time.Time) keyView {
	use := uses[k.KeyIDHash]
	v := keyView{
		State: k.State, Primary: k.State == "primary", KeyID: k.KeyID, Short: shortKeyID(k.KeyID),
		Activated: at(k.Activation, now), Problem: k.Problem, Decrypts: count(use.Count), LastUsed: at(use.Last, now), NeverUsed: use.Last.IsZero(),
	}
	if k.Proven {
		v.Proven = k.Mechanism
	}
	if !k.DestroyAfter.IsZero() {
		v.Destroy = k.DestroyAfter.UTC().Format("2 Jan 2006")
	}
	return v
}

// failures is how often something failed, for a note.
func failures(n uint64) string {
	if n == 0 {
		return ""
	}
	return count(n) + " failed"
}

// trafficTable tells of a span of time.
type trafficTable struct {
	Caption string
	Rows    []trafficRow
}

type trafficRow struct {
	Name, Rate, Count, Failed string
	Bad                       bool
	P50, P95, P99             string
}

func newTraffic(name string, d time.Duration, r history.Reading) trafficTable {
	last := r.Last(d)
	t := trafficTable{Caption: "Last " + name}
	if short := d - last.Elapsed; short > history.Interval {
		t.Caption = "Last " + span(last.Elapsed)
		if last.Elapsed < time.Second {
			t.Caption = "Since a moment ago"
		}
		t.Caption += ", all there is of the last " + name
	}
	add := func(name string, s history.Series) {
		row := trafficRow{Name: name, Rate: rate(last.PerSecond(s.Ended)), Count: count(s.Ended), Failed: count(s.Failed), Bad: s.Failed > 0}
		for _, q := range []struct {
			into *string
			q    float64
		}{{&row.P50, 0.5}, {&row.P95, 0.95}, {&row.P99, 0.99}} {
			*q.into = none
			if d, ok := s.Quantile(q.q, r.Bounds); ok {
				*q.into = latency(d)
			}
		}
		t.Rows = append(t.Rows, row)
	}
	add("Encrypt", last.Sample.Encrypt)
	add("Decrypt", last.Sample.Decrypt)
	add("Cold unwraps", last.Sample.Unwrap)
	add("All HSM calls", last.Sample.HSM)
	return t
}

// plotPoints is how many values a line has: one a minute.
const plotPoints = 60

func newPlots(r history.Reading) []plot {
	spans := r.Split(plotPoints, history.Window/plotPoints)
	rates := func(class, name string, of func(history.Sample) uint64) values {
		v := values{class: class, name: name, rare: class == "bad" || class == "s3"}
		for _, s := range spans {
			if s.Elapsed <= 0 {
				v.at = append(v.at, math.NaN())
				continue
			}
			v.at = append(v.at, s.PerSecond(of(s.Sample)))
		}
		return v
	}
	quantiles := func(of func(history.Sample) history.Series) []values {
		all := []values{{class: "s1", name: "p50"}, {class: "s2", name: "p95"}, {class: "s3", name: "p99"}}
		for _, s := range spans {
			for i, q := range []float64{0.5, 0.95, 0.99} {
				d, ok := of(s.Sample).Quantile(q, r.Bounds)
				value := math.NaN()
				if ok {
					value = d.Seconds()
				}
				all[i].at = append(all[i].at, value)
			}
		}
		return all
	}
	spellLatency := func(v float64) string { return latency(time.Duration(v * float64(time.Second))) }
	const noSamples, noRequests, noCalls = "no samples yet", "no requests", "no calls"
	return []plot{
		newPlot("requests", "Requests", noSamples, rate, linear(rate),
			rates("s1", "Encrypt", func(s history.Sample) uint64 { return s.Encrypt.Ended }),
			rates("s2", "Decrypt", func(s history.Sample) uint64 { return s.Decrypt.Ended }),
			rates("bad", "failed", func(s history.Sample) uint64 { return s.Encrypt.Failed + s.Decrypt.Failed })),
		newPlot("encrypt", "Encrypt latency", noRequests, spellLatency, decades, quantiles(func(s history.Sample) history.Series { return s.Encrypt })...),
		newPlot("decrypt", "Decrypt latency", noRequests, spellLatency, decades, quantiles(func(s history.Sample) history.Series { return s.Decrypt })...),
		newPlot("hsm", "HSM calls", noSamples, rate, linear(rate),
			rates("s1", "all calls", func(s history.Sample) uint64 { return s.HSM.Ended }),
			rates("s2", "cold unwraps", func(s history.Sample) uint64 { return s.Unwrap.Ended }),
			rates("bad", "failed", func(s history.Sample) uint64 { return s.HSM.Failed })),
		newPlot("hsmtime", "HSM call latency", noCalls, spellLatency, decades, quantiles(func(s history.Sample) history.Series { return s.HSM })...),
		newPlot("cache", "Decrypts by seed cache", noSamples, rate, linear(rate),
			rates("s1", "hits", func(s history.Sample) uint64 { return s.Hits }),
			rates("s2", "misses", func(s history.Sample) uint64 { return s.Misses }),
			rates("s3", "refused from memory", func(s history.Sample) uint64 { return s.Remembered })),
	}
}

// strip is the health over the last hour, one cell a minute.
type strip struct {
	Desc  string
	Cells []cell
	Parts []fact // how long in which state
}

// cell is a minute. Its height tells the state as well as its class does.
type cell struct {
	X, Y, Height float64
	State        string
}

// The strip's cells, in units of its view box of 360 by 24.
const (
	stripCells           = 60
	cellPitch, stripBase = 6.0, 24.0
)

// severity orders the states; a minute shows the worst that was seen in it.
var severity = map[health.State]int{health.Ready: 1, health.Starting: 2, health.Coasting: 3, health.Unready: 4, health.Revoked: 5}

// heights are those of the cells.
var heights = map[health.State]float64{health.Ready: 8, health.Starting: 14, health.Coasting: 14, health.Unready: 24, health.Revoked: 24}

func newStrip(r history.Reading) strip {
	var s strip
	if len(r.Samples) == 0 {
		return s
	}
	end := r.Samples[len(r.Samples)-1].At
	var worst [stripCells]health.State
	seen := map[health.State]time.Duration{}
	for i, sample := range r.Samples {
		back := int(end.Sub(sample.At) / (history.Window / stripCells))
		if cell := stripCells - 1 - back; cell >= 0 && severity[sample.State] > severity[worst[cell]] {
			worst[cell] = sample.State
		}
		if i > 0 {
			seen[sample.State] += sample.At.Sub(r.Samples[i-1].At)
		}
	}
	for i, state := range worst {
		if h := heights[state]; h > 0 {
			s.Cells = append(s.Cells, cell{X: float64(i) * cellPitch, Y: stripBase - h, Height: h, State: string(state)})
		}
	}
	var words []string
	for _, state := range health.States() {
		if d := seen[state]; d > 0 {
			s.Parts = append(s.Parts, fact{Name: strings.ToLower(states[state].title), Value: span(d), Note: string(state)})
			words = append(words, strings.ToLower(states[state].title)+" for "+span(d))
		}
	}
	if len(words) == 0 {
		words = []string{"nothing yet"}
	}
	s.Desc = "Health, last hour: " + strings.Join(words, ", ") + "."
	return s
}

// seedsView is the seed cache, or the uses of the KEK in direct mode.
type seedsView struct {
	Mode, Mechanism string
	Bars            []bar
	Facts           []fact
}

// renewAt is at which share of a limit a seed is renewed, in percent.
const renewAt = 80

// The bounds of direct mode: kekd warns at the first and stops at the second.
const (
	directWarns = 1 << 28
	directStops = 1 << 32
)

func newSeeds(s httpapi.Status, r history.Reading, f Facts) seedsView {
	v := seedsView{Mode: s.Seeds.Mode, Mechanism: s.Seeds.Mechanism}
	q := s.Seeds
	if q.DirectUses > 0 || q.Mode == "direct" {
		v.Bars = append(v.Bars, bar{
			Name: "Uses of the key in direct mode", Text: count(q.DirectUses), Note: "warns at 2\u00b2\u2078, stops at 2\u00b3\u00b2",
			Width: share(float64(q.DirectUses), directStops), Mark: share(directWarns, directStops), Level: level(q.DirectUses >= directStops, q.DirectUses >= directWarns),
		})
	}
	if q.Mode == "direct" {
		v.Facts = []fact{{"With the HSM now", plural(uint64(max(q.Waiting, 0)), "request"), ""}}
		return v
	}
	if q.Created.IsZero() {
		v.Facts = append(v.Facts, fact{"Seed in use", "none", ""})
	} else {
		age := s.Time.Sub(q.Created)
		v.Bars = append(v.Bars, bar{
			Name: "Age of the seed", Text: span(age), Note: "of " + span(f.SeedMaxAge) + ", renewed at 80 %",
			Width: share(float64(age), float64(f.SeedMaxAge)), Mark: renewAt, Level: level(age >= f.SeedMaxAge, age > f.SeedMaxAge/10*9),
		}, bar{
			Name: "Uses of the seed", Text: count(q.Uses), Note: "of " + count(q.MaxUses) + ", renewed at 80 %",
			Width: share(float64(q.Uses), float64(q.MaxUses)), Mark: renewAt, Level: level(q.Uses >= q.MaxUses, q.Uses > q.MaxUses/10*9),
		})
	}
	v.Bars = append(v.Bars, bar{
		Name: "Seeds kept", Text: count(uint64(max(q.Cached, 0))), Note: "of " + count(uint64(max(q.Capacity, 0))), Width: share(float64(q.Cached), float64(q.Capacity)), Level: level(false, false),
	})
	hour := r.Last(history.Window).Sample
	all := hour.Hits + hour.Misses + hour.Remembered
	v.Facts = append(v.Facts,
		fact{"Hits, last hour", count(hour.Hits), percent(hour.Hits, all)},
		fact{"Misses, last hour", count(hour.Misses), ""},
		fact{"Refused from memory", count(hour.Remembered), "last hour"},
		fact{"Evictions", count(r.Now.Evictions), "since the start"},
		fact{"With the HSM now", plural(uint64(max(q.Waiting, 0)), "request"), ""})
	return v
}

type hsmView struct {
	Bars  []bar
	Facts []fact
}

func newHSM(s httpapi.Status, n history.Now) hsmView {
	var v hsmView
	if n.SessionsLimit > 0 {
		v.Bars = append(v.Bars, bar{
			Name: "Sessions in use", Text: count(n.SessionsInUse), Note: "of " + count(n.SessionsLimit) + ", " + waits(n.SessionsWaiting),
			Width: share(float64(n.SessionsInUse), float64(n.SessionsLimit)),
			Level: level(false, n.SessionsWaiting > 0 && n.SessionsInUse >= n.SessionsLimit),
		})
	}
	breaker, pin := "closed", "not refused"
	if s.Seeds.BreakerOpen {
		breaker = "open"
	}
	if n.PINLatched {
		pin = "refused, latched"
	}
	worker := "none runs"
	if t := s.Token; t != nil {
		if t.WorkerPID != 0 {
			worker = fmt.Sprintf("process %d", t.WorkerPID)
		}
		v.Facts = append(v.Facts,
			fact{"Token", t.Label, "serial " + t.Serial},
			fact{"Module", t.Library, strings.TrimSpace(t.Manufacturer + " " + t.Model)})
	} else {
		v.Facts = append(v.Facts, fact{"Token", "not found yet", ""})
	}
	v.Facts = append(v.Facts,
		fact{"Worker", worker, ""},
		fact{"Worker ended", times(n.WorkerRestarts), "since the start"},
		fact{"Worker did not come up", times(n.WorkerStartsFailed), "since the start"},
		fact{"Breaker", breaker, ""},
		fact{"PIN", pin, ""})
	return v
}

func times(n uint64) string {
	switch n {
	case 0:
		return "never"
	case 1:
		return "once"
	}
	return count(n) + " times"
}

type auditView struct {
	On      bool
	Facts   []fact
	Failing []string
}

func newAudit(r history.Reading, f Facts, now time.Time) auditView {
	v := auditView{On: f.Audit, Failing: r.Now.AuditFailing}
	if !f.Audit {
		return v
	}
	n := r.Now
	v.Facts = []fact{
		{"Last record", ago(r.Records.Last, now), count(n.AuditRecords) + " since the start"},
		{"Last signature", ago(n.AuditSigned, now), ""},
		{"Lost", plural(n.AuditLost, "record"), "since the start"},
		{"Failing", "nothing", ""},
	}
	if !n.AuditSigned.IsZero() {
		v.Facts[1].Note = "through line " + count(n.AuditSequence)
	}
	if len(n.AuditFailing) > 0 {
		v.Facts[3].Value = strings.Join(n.AuditFailing, ", ")
	}
	return v
}

func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return at(t, now).Ago
}

// recentChanges are shown at once; those before them are folded away.
const recentChanges = 12

type changeView struct {
	At             moment
	Level, Subject string
	Text, Repeated string
}

func newChange(c history.Change, now time.Time) changeView {
	v := changeView{At: at(c.Last, now), Level: c.Level.String(), Subject: string(c.Subject), Text: c.Text}
	if c.Count > 1 {
		v.Repeated = fmt.Sprintf("%s times since %s", count(uint64(c.Count)), at(c.At, now).Clock)
	}
	return v
}

// iconOf is the browser tab's icon: the state's shape in its colour.
func iconOf(s health.State) template.URL {
	shape := map[health.State]string{
		health.Ready:    `<circle cx='8' cy='8' r='7' fill='%231f7a4d'/><path d='M4.5 8.2l2.4 2.4 4.6-5' fill='none' stroke='white' stroke-width='2'/>`,
		health.Coasting: `<path d='M8 1l7.5 14H.5z' fill='%23b87400'/><path d='M8 6v4.5M8 12v1.6' stroke='white' stroke-width='1.8'/>`,
		health.Starting: `<circle cx='8' cy='8' r='6' fill='none' stroke='%232f66b5' stroke-width='2.6' stroke-dasharray='5 3'/>`,
		health.Revoked:  `<circle cx='8' cy='8' r='6' fill='none' stroke='%238e2f86' stroke-width='2.6'/><path d='M4 12l8-8' stroke='%238e2f86' stroke-width='2.6'/>`,
	}[s]
	if shape == "" {
		shape = `<path d='M5 .8h6L15.2 5v6L11 15.2H5L.8 11V5z' fill='%23c0332b'/><path d='M5 5l6 6M11 5l-6 6' stroke='white' stroke-width='2'/>`
	}
	return template.URL("data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>" + shape + "</svg>") //nolint:gosec // constants
}
