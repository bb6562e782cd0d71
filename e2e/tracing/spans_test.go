package tracing

import (
	"fmt"
	"slices"
	"strings"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// span is a span that was received.
type span struct {
	*tracepb.Span

	resource map[string]string
}

func spansOf(req *collectorpb.ExportTraceServiceRequest) []*span {
	var all []*span
	for _, rs := range req.GetResourceSpans() {
		resource := texts(rs.GetResource().GetAttributes())
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				all = append(all, &span{s, resource})
			}
		}
	}
	return all
}

func texts(attributes []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, a := range attributes {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			m[a.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			m[a.GetKey()] = fmt.Sprint(v.IntValue)
		default:
			m[a.GetKey()] = fmt.Sprintf("%T", v)
		}
	}
	return m
}

func (s *span) attributes() map[string]string { return texts(s.GetAttributes()) }

func (s *span) length() time.Duration {
	return time.Duration(s.GetEndTimeUnixNano() - s.GetStartTimeUnixNano())
}

// traceOf are the spans of a trace, in the order of their starts.
func traceOf(all []*span, id []byte) []*span {
	var trace []*span
	for _, s := range all {
		if slices.Equal(s.GetTraceId(), id) {
			trace = append(trace, s)
		}
	}
	slices.SortStableFunc(trace, func(a, b *span) int {
		if a.GetStartTimeUnixNano() < b.GetStartTimeUnixNano() {
			return -1
		}
		return 1
	})
	return trace
}

// shape spells the names of a trace, each below its parent.
func shape(trace []*span) string {
	var b strings.Builder
	walk(trace, func(depth int, s *span) { b.WriteString(strings.Repeat("  ", depth) + s.GetName() + "\n") })
	return b.String()
}

// tree spells a trace for people: when each span begins, after the first one, how long
// it is, and what it says.
func tree(trace []*span) string {
	var b strings.Builder
	begun := trace[0].GetStartTimeUnixNano()
	fmt.Fprintf(&b, "%9s %9s\n", "begins", "takes")
	walk(trace, func(depth int, s *span) {
		said := s.attributes()
		var words []string
		for _, key := range slices.Sorted(func(yield func(string) bool) {
			for k := range said {
				if !yield(k) {
					return
				}
			}
		}) {
			if !strings.HasPrefix(key, "rpc.") && key != "kms.key_id" {
				_, short, _ := strings.Cut(key, ".")
				words = append(words, short+"="+said[key])
			}
		}
		for _, e := range s.GetEvents() {
			words = append(words, "event: "+e.GetName())
		}
		if len(s.GetLinks()) > 0 {
			words = append(words, "link")
		}
		after := time.Duration(s.GetStartTimeUnixNano() - begun)
		fmt.Fprintf(&b, "%9s %9s  %s%s  %s\n", brief(after), brief(s.length()), strings.Repeat("  ", depth), s.GetName(), strings.Join(words, " "))
	})
	return b.String()
}

func brief(d time.Duration) string {
	return fmt.Sprintf("%.3f ms", float64(d)/float64(time.Millisecond))
}

// walk visits a trace, parents first.
func walk(trace []*span, visit func(depth int, s *span)) {
	known := map[string]bool{}
	for _, s := range trace {
		known[string(s.GetSpanId())] = true
	}
	var below func(parent string, depth int)
	below = func(parent string, depth int) {
		for _, s := range trace {
			p := string(s.GetParentSpanId())
			if p == parent || parent == "" && !known[p] {
				visit(depth, s)
				below(string(s.GetSpanId()), depth+1)
			}
		}
	}
	below("", 0)
}
