package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// writeMarkdown writes the tables: what is asked of kekd first, then everything.
func (r *report) writeMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s/%s, %d CPUs, %s; %d rounds of %v, %d-byte plaintexts, %d connection(s) a target.\n",
		r.Machine.OS, r.Machine.Arch, r.Machine.CPUs, r.Machine.Go,
		r.Settings.Rounds, time.Duration(r.Settings.DurationSeconds*float64(time.Second)), r.Settings.PlaintextBytes, r.Settings.Connections)
	b.WriteString("Ops/s and the ratios to the no-op are medians over the rounds, the ratios with their quartiles; latencies are of all calls together; a dash stands where there are too few calls to tell.\n")
	full := len(r.Operations) > 0
	if full {
		fmt.Fprintf(&b, "kekd and the naive plugin have %d PKCS#11 sessions each.\n", r.Settings.Sessions)
		r.writeAims(&b)
		r.writeVerdict(&b)
		r.writeOperations(&b)
		r.writeCold(&b)
		r.writeStatus(&b)
		r.writeStarts(&b)
	}
	r.writeLoads(&b, full)
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// writeLoads writes one table for each latency of the HSM. They are long, and
// folded away where other tables stand before them.
func (r *report) writeLoads(b *strings.Builder, folded bool) {
	const head = "\n| callers | operation | target | ops/s | p50 | p99 | p99.9 | ops/s to no-op | p99 to no-op | CPU a call | HSM ops per 1,000 | errors |\n" +
		"| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
	if folded {
		b.WriteString("\n### All targets: throughput, latency, processor time\n")
	}
	for i, row := range r.Rows {
		first := i == 0 || row.HSMLatency != r.Rows[i-1].HSMLatency
		last := i == len(r.Rows)-1 || row.HSMLatency != r.Rows[i+1].HSMLatency
		if first && folded {
			fmt.Fprintf(b, "\n<details><summary>HSM %s</summary>\n", added(row.HSMLatency))
		}
		if first {
			b.WriteString(head)
		}
		fmt.Fprintf(b, "| %d | %s | %s | %.0f | %s | %s | %s | %s | %s | %s | %s | %d |\n",
			row.Callers, row.Operation, row.Target, row.PerSecond.Median, latency(row.P50), latency(row.P99), latency(row.P999),
			row.Ratio, orDash(row.P99Ratio), optional(row.CPU, "%.1f µs"), optional(row.HSMPerThousand, "%.2f"), row.Errors)
		if last && folded {
			b.WriteString("\n</details>\n")
		}
	}
}

// writeAims writes what seeded kekd reaches beside the no-op, and the noise.
func (r *report) writeAims(b *strings.Builder) {
	b.WriteString("\n### Seeded kekd beside the no-op\n\n")
	b.WriteString("| HSM | callers | operation | ops/s: seeded | control | p99: seeded | control | CPU a call: seeded | no-op | HSM ops per 1,000 |\n")
	b.WriteString("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, own := range r.Rows {
		if own.Target != seededName {
			continue
		}
		control, noop := r.beside(own, controlName), r.beside(own, noopName)
		fmt.Fprintf(b, "| %s | %d | %s | %s | %s | %s | %s | %s | %s | %s |\n", added(own.HSMLatency), own.Callers, own.Operation,
			own.Ratio, control.Ratio, orDash(own.P99Ratio), orDash(control.P99Ratio),
			optional(own.CPU, "%.1f µs"), optional(noop.CPU, "%.1f µs"), optional(own.HSMPerThousand, "%.2f"))
	}
}

// What is asked of seeded kekd beside the no-op, at this many callers and more.
const (
	aimCallers = 8
	aimRate    = 0.95 // of its ops/s, at least
	aimTail    = 1.2  // of its p99, at most
)

// writeVerdict says where the aims are missed by the medians.
func (r *report) writeVerdict(b *strings.Builder) {
	var missed []string
	settings := 0
	for _, own := range r.Rows {
		if own.Target != seededName || own.Callers < aimCallers {
			continue
		}
		settings++
		at := fmt.Sprintf("%s, %d callers, HSM %s", own.Operation, own.Callers, added(own.HSMLatency))
		if own.Ratio.Median < aimRate {
			missed = append(missed, fmt.Sprintf("ops/s %.2f (%s)", own.Ratio.Median, at))
		}
		if own.P99Ratio != nil && own.P99Ratio.Median > aimTail {
			missed = append(missed, fmt.Sprintf("p99 %.2f (%s)", own.P99Ratio.Median, at))
		}
	}
	fmt.Fprintf(b, "\nAim at %d and more callers: at least %.2f of the no-op's ops/s, and at most %.2f of its p99, by the medians. ", aimCallers, aimRate, aimTail)
	if len(missed) == 0 {
		fmt.Fprintf(b, "Reached in all of %d settings.\n", settings)
		return
	}
	fmt.Fprintf(b, "Missed: %s; of %d settings.\n", strings.Join(missed, "; "), settings)
}

// beside is another target's row of the same setting; empty if there is none.
func (r *report) beside(of row, target string) row {
	i := slices.IndexFunc(r.Rows, func(o row) bool {
		return o.Target == target && o.HSMLatency == of.HSMLatency && o.Callers == of.Callers && o.Operation == of.Operation
	})
	if i < 0 {
		return row{}
	}
	return r.Rows[i]
}

func (r *report) writeOperations(b *strings.Builder) {
	b.WriteString("\n### HSM operations under all of this load\n\n")
	b.WriteString("kekd's own count by cause, and the calls that reached the PKCS#11 module as the module counted them. C_EncryptInit and C_DecryptInit begin an operation.\n\n")
	b.WriteString("| target | requests | kekd's wraps and unwraps | its other operations | C_EncryptInit + C_DecryptInit | for 1,000 requests |\n")
	b.WriteString("| --- | ---: | ---: | --- | ---: | ---: |\n")
	for _, o := range r.Operations {
		own, others := "-", []string{}
		if o.ByKekd != nil {
			own = fmt.Sprintf("%.0f", o.ByKekd["wrap"]+o.ByKekd["unwrap"])
			for _, op := range slices.Sorted(maps.Keys(o.ByKekd)) {
				if n := o.ByKekd[op]; op != "wrap" && op != "unwrap" && n > 0 {
					others = append(others, fmt.Sprintf("%s %.0f", op, n))
				}
			}
		}
		calls := o.ByModule["C_EncryptInit"] + o.ByModule["C_DecryptInit"]
		fmt.Fprintf(b, "| %s | %d | %s | %s | %d | %.2f |\n", o.Target, o.Requests, own, strings.Join(others, ", "),
			calls, float64(calls)*1000/float64(o.Requests))
	}
}

func (r *report) writeCold(b *strings.Builder) {
	b.WriteString("\n### Decrypt with a cold cache\n\n")
	fmt.Fprintf(b, "Distinct seeds, each decrypted once by %d callers, right after a start; warm is the same once more. The middle of the rounds.\n\n", coldCallers)
	b.WriteString("| HSM | seeds | seeded, cold | HSM operations | seeded, warm | HSM operations | naive | HSM operations |\n")
	b.WriteString("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, c := range r.Cold {
		fmt.Fprintf(b, "| %s | %d | %s | %d | %s | %d | %s | %d |\n", added(c.HSMLatency), c.Seeds,
			seconds(c.Cold.Seconds), c.Cold.HSMOperations, seconds(c.Warm.Seconds), c.Warm.HSMOperations, seconds(c.Naive.Seconds), c.Naive.HSMOperations)
	}
}

func (r *report) writeStatus(b *strings.Builder) {
	b.WriteString("\n### Status while the rest is saturated\n\n")
	fmt.Fprintf(b, "One Status after the other, on the connection on which %d callers encrypt and decrypt without a pause.\n\n", statusCallers)
	b.WriteString("| HSM | target | idle: p50 | p99 | saturated: p50 | p99 | longest | calls |\n")
	b.WriteString("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, s := range r.Status {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s | %d |\n", added(s.HSMLatency), s.Target,
			latency(s.Idle.P50), latency(s.Idle.P99), latency(s.Busy.P50), latency(s.Busy.P99), latency(s.Busy.Max), s.Busy.Calls)
	}
}

func (r *report) writeStarts(b *strings.Builder) {
	b.WriteString("\n### Start and memory\n\n")
	b.WriteString("From the start of the process to the first Encrypt that it answers, and what is resident then, and at most after 64 callers.\n\n")
	b.WriteString("| target | HSM | start to first answer | resident then, all processes | at most, the process | at most, its worker |\n")
	b.WriteString("| --- | --- | ---: | ---: | ---: | ---: |\n")
	for _, s := range r.Starts {
		peak, worker := "-", "-"
		for _, m := range r.Memory {
			if m.Target == s.Target {
				peak = mebibytes(m.Process.Peak)
				if m.Worker != nil {
					worker = mebibytes(m.Worker.Peak)
				}
			}
		}
		fmt.Fprintf(b, "| %s | %s | %.0f ms (%.0f-%.0f) | %s | %s | %s |\n", s.Target, added(s.HSMLatency),
			1000*s.Seconds.Median, 1000*s.Seconds.Lower, 1000*s.Seconds.Upper, mebibytes(s.Resident), peak, worker)
	}
}

// String is the median with the quartiles.
func (s summary) String() string { return fmt.Sprintf("%.2f (%.2f-%.2f)", s.Median, s.Lower, s.Upper) }

func orDash(s *summary) string {
	if s == nil {
		return "-"
	}
	return s.String()
}

func optional(v *float64, format string) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf(format, *v)
}

// added says what the HSM was given to do beyond its work.
func added(milliseconds float64) string {
	if milliseconds == 0 {
		return "as it is"
	}
	return fmt.Sprintf("+ %g ms", milliseconds)
}

// latency prints microseconds with three digits or more; 0 is not known.
func latency(us float64) string {
	switch {
	case us == 0:
		return "-"
	case us >= 10_000:
		return fmt.Sprintf("%.1f ms", us/1000)
	}
	return fmt.Sprintf("%.0f µs", us)
}

func seconds(s float64) string {
	if s < 1 {
		return fmt.Sprintf("%.0f ms", 1000*s)
	}
	return fmt.Sprintf("%.1f s", s)
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
