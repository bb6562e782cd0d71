package inventory

import (
	"bytes"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcd bounds an answer by the number of keys only, and tells no sizes: a page is
// small only if few keys are asked for. So maxKeys objects of any size must do no
// harm, to etcd as to kekctl. For pageBytes of large objects fewer are asked for.
const (
	pageBytes = 2 << 20
	maxKeys   = 32
)

// maxRange is how many keys a request's range should hold. etcd counts all of them
// for each page, which for a million keys costs more than all else. Narrower ranges
// end in pages that are not full.
const maxRange = 500

// pager walks the keys below a prefix. Each request asks for the next few keys
// within a range that holds only so many: those that share their first depth bytes
// with start. It finds the depth out as it goes, from the counts that etcd answers.
type pager struct {
	prefix string
	start  string // the next key is this one or behind it
	depth  int
	limit  int64
	// wide are the depths at which the rest of the range is larger than maxRange, the
	// widest range first.
	wide []wideRange
}

type wideRange struct {
	depth int
	left  int64 // keys behind start
}

func newPager(prefix string) *pager {
	return &pager{prefix: prefix, start: prefix, depth: len(prefix), limit: maxKeys}
}

// end is where the range ends, exclusive.
func (p *pager) end() string { return clientv3.GetPrefixRangeEnd(p.start[:p.depth]) }

// refused makes the next page smaller than the last; false if it has one key.
func (p *pager) refused() bool {
	if p.limit == 1 {
		return false
	}
	p.limit = max(p.limit/4, 1)
	return true
}

// next moves behind a page, and returns false if that was the last one. count is
// how many keys the range held, the page's included.
func (p *pager) next(page []*mvccpb.KeyValue, count int64, more bool) bool {
	read := int64(len(page))
	for i := range p.wide {
		p.wide[i].left -= read
	}
	if read > 0 {
		p.limit = fit(page)
	}
	if more {
		p.within(page, count)
		return true
	}
	return p.behind(count)
}

// within stays in the range, or narrows it to what the page's keys have in common.
func (p *pager) within(page []*mvccpb.KeyValue, count int64) {
	first, last := page[0].Key, page[len(page)-1].Key
	if count > maxRange {
		p.wide = append(p.wide, wideRange{p.depth, count - int64(len(page))})
		p.depth = min(max(p.depth+1, common(first, last)), len(last))
	}
	p.start = string(last) + "\x00"
}

// behind moves to the range behind the one that was read to its end.
func (p *pager) behind(count int64) bool {
	end := p.end()
	if end >= clientv3.GetPrefixRangeEnd(p.prefix) || len(end) <= len(p.prefix) {
		return false
	}
	narrow := 0 // the widest range that is not too wide any more
	for i, w := range slices.Backward(p.wide) {
		if w.depth < len(end) && w.left > maxRange {
			break
		}
		if w.depth < len(end) {
			narrow = w.depth
		}
		p.wide = p.wide[:i]
	}
	p.start, p.depth = end, len(end)
	switch floor := p.floor(); {
	case narrow > 0:
		p.depth = narrow
	case count < maxRange/4:
		// Ranges of this depth hold little: try one that is wider, but not as wide as
		// one that is known to hold too much.
		p.depth = (floor + len(end)) / 2
	}
	return true
}

// floor is the widest depth worth trying.
func (p *pager) floor() int {
	if len(p.wide) == 0 {
		return len(p.prefix)
	}
	return p.wide[len(p.wide)-1].depth + 1
}

// fit is how many objects like those of a page make pageBytes.
func fit(page []*mvccpb.KeyValue) int64 {
	size := 0
	for _, kv := range page {
		size += len(kv.Key) + len(kv.Value)
	}
	return min(max(int64(pageBytes*len(page)/(size+1)), 1), maxKeys)
}

// common is how many first bytes two keys share.
func common(a, b []byte) int {
	for i := range a {
		if !bytes.HasPrefix(b, a[:i+1]) {
			return i
		}
	}
	return len(a)
}
