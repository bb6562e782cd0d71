package rotation

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"kekd/hsm"
	"kekd/internal/kek"
)

// UseRecordName is the name under which the Memory keeps which key was used when.
const UseRecordName = "key-use"

// Use is which keys a node used, and when. Times are by the node's clock.
type Use struct {
	// Node identifies the node's memory: 32 hexadecimal digits.
	Node string
	// Recorded is since when the node records its use. Earlier use is not known.
	Recorded time.Time
	// LastUsed is when the node last encrypted under a key, or told Kubernetes to. A
	// time may be later than the truth, never earlier. A key that is missing was not
	// used since Recorded.
	LastUsed map[kek.ID]time.Time
}

// useRecord remembers when each key was last used, across restarts. The file names
// the keys in use, not the moments at which they were used: a crash cannot leave a
// time in it that is too early. It is safe for concurrent use.
type useRecord struct {
	memory Memory
	clock  func() time.Time

	mu       sync.Mutex
	node     string
	recorded time.Time
	// used has the keys that are out of use, inUse those that may be used now.
	used  map[kek.ID]time.Time
	inUse map[kek.ID]bool
	// file is what the Memory holds; nil if that is nothing or not readable.
	file *useFile
}

// useFile is the JSON of a useRecord. Keys are CKA_IDs in hexadecimal.
type useFile struct {
	Node  string               `json:"node"`
	Since time.Time            `json:"since"`
	Used  map[string]time.Time `json:"used"`
	InUse []string             `json:"inUse"`
}

// openUseRecord reads what the Memory holds. Keys that were in use, and the one that
// was published last, count as used until now: kekd may have crashed while it used
// them, but it has not run since. So do keys that were published and that the record
// lacks: a kekd that keeps no record, such as an older version, may have used them. If the record is not readable, openUseRecord returns
// why, and a record that begins now and claims nothing about earlier use.
func openUseRecord(memory Memory, clock func() time.Time, published hsm.Published) (*useRecord, error) {
	now := clock()
	u := &useRecord{memory: memory, clock: clock, used: make(map[kek.ID]time.Time), inUse: make(map[kek.ID]bool)}
	var file useFile
	kept, err := memory.Load(UseRecordName, &file)
	if err == nil && kept {
		err = u.read(&file)
	}
	if err != nil || !kept {
		id := make([]byte, 16)
		_, _ = rand.Read(id) // never fails, see its documentation
		u.node, u.recorded, u.file = hex.EncodeToString(id), now, nil
		clear(u.used)
		clear(u.inUse)
	}
	if published.Last != "" {
		u.inUse[published.Last] = true
	}
	for _, id := range published.Before {
		if _, known := u.used[id]; !known {
			u.inUse[id] = true
		}
	}
	u.end("", now)
	return u, err
}

// read takes over the content of the file.
func (u *useRecord) read(file *useFile) error {
	if len(file.Node) != 32 || file.Since.IsZero() {
		return fmt.Errorf("read which keys were used: node %q, since %s: not a record of kekd; remove %s.json from stateDir",
			file.Node, file.Since, UseRecordName)
	}
	for text, at := range file.Used {
		id, err := kek.ParseID(text)
		if err != nil {
			return fmt.Errorf("read which keys were used: %w", err)
		}
		u.used[id] = at
	}
	for _, text := range file.InUse {
		id, err := kek.ParseID(text)
		if err != nil {
			return fmt.Errorf("read which keys were used: %w", err)
		}
		u.inUse[id] = true
	}
	u.node, u.recorded, u.file = file.Node, file.Since, file
	return nil
}

// begin notes that a key may be used from now on, before it is. Unless the Memory
// says so already, it is saved first. A record that the Memory does not hold can wait,
// if that is all that keeps the node from a key that it published before: the next
// start finds no record then, and claims nothing.
func (u *useRecord) begin(id kek.ID, publishedBefore bool, late map[kek.ID]time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.add(late)
	was, held := u.inUse[id], u.file != nil
	u.inUse[id] = true
	if held && slices.Contains(u.file.InUse, id.String()) {
		return nil
	}
	err := u.save()
	if err == nil || !held && publishedBefore {
		return nil
	}
	if !was {
		delete(u.inUse, id)
	}
	return err
}

// keep is called after each look: current is the key in use, empty for none, and late
// when keys were used that had been replaced. It saves what the call before found out
// (a request that was under way at a switch has ended since), and writes the record
// again where the Memory holds another, or none.
func (u *useRecord) keep(current kek.ID, late map[kek.ID]time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.add(late)
	var held useFile
	if kept, err := u.memory.Load(UseRecordName, &held); err != nil || !kept || u.file == nil || !held.equal(u.file) {
		u.file = nil
	}
	var err error
	if u.file == nil || u.outdated() {
		err = u.save()
	}
	u.end(current, u.clock())
	if err != nil {
		return fmt.Errorf("record which keys are used: %w", err)
	}
	return nil
}

// add takes in when keys were used that had been replaced. The caller holds mu.
func (u *useRecord) add(late map[kek.ID]time.Time) {
	for id, at := range late {
		if !u.inUse[id] {
			u.used[id] = later(u.used[id], at)
		}
	}
}

// equal reports whether two files say the same.
func (f *useFile) equal(o *useFile) bool {
	return f.Node == o.Node && f.Since.Equal(o.Since) && slices.Equal(f.InUse, o.InUse) && maps.EqualFunc(f.Used, o.Used, time.Time.Equal)
}

// outdated reports whether the file has to be written: a key that is out of use was
// used later than it says, or the clock was set forward since. The caller holds mu.
func (u *useRecord) outdated() bool {
	const slewed = time.Second // a clock that is set gently is no reason to write
	now := u.content()
	if !slices.Equal(now.InUse, u.file.InUse) || now.Since.Round(0).Sub(u.file.Since.Round(0)) > slewed {
		return true
	}
	for id, at := range now.Used {
		held, ok := u.file.Used[id]
		if !slices.Contains(now.InUse, id) && (!ok || at.After(held) || at.Round(0).Sub(held.Round(0)) > slewed) {
			return true
		}
	}
	return false
}

// end notes that all keys but current are out of use. The caller holds mu.
func (u *useRecord) end(current kek.ID, now time.Time) {
	for id := range u.inUse {
		if id != current {
			delete(u.inUse, id)
			u.used[id] = later(u.used[id], now)
		}
	}
}

// save writes the record. The caller holds mu.
func (u *useRecord) save() error {
	file := u.content()
	if err := u.memory.Save(UseRecordName, file); err != nil {
		return err
	}
	u.file = file
	return nil
}

// content is the record as the Memory keeps it. The caller holds mu.
func (u *useRecord) content() *useFile {
	now := u.clock()
	file := &useFile{Node: u.node, Since: byClock(u.recorded, now), Used: make(map[string]time.Time, len(u.used)), InUse: []string{}}
	for id, at := range u.used {
		file.Used[id.String()] = byClock(at, now)
	}
	for id := range u.inUse {
		file.InUse = append(file.InUse, id.String())
	}
	slices.Sort(file.InUse)
	return file
}

// use returns what the record says now.
func (u *useRecord) use(late map[kek.ID]time.Time) Use {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.clock()
	r := Use{Node: u.node, Recorded: byClock(u.recorded, now), LastUsed: make(map[kek.ID]time.Time, len(u.used)+1)}
	for id, at := range u.used {
		r.LastUsed[id] = byClock(at, now)
	}
	for id, at := range late {
		r.LastUsed[id] = later(r.LastUsed[id], byClock(at, now))
	}
	for id := range u.inUse {
		r.LastUsed[id] = later(r.LastUsed[id], now.UTC().Round(0))
	}
	return r
}

// byClock is t as a reader must see it who goes by what the clock says now. If the
// clock was set forward since t, t by the old clock would look longer ago than it is;
// while kekd runs, the monotonic clock tells. If it was set back, t stays as it was,
// which is later than the truth.
func byClock(t, now time.Time) time.Time {
	return later(t, now.Add(-now.Sub(t)))
}

// later returns the later of two times of day.
func later(a, b time.Time) time.Time {
	a, b = a.UTC(), b.UTC()
	if b.Round(0).After(a.Round(0)) {
		return b
	}
	return a
}

// recordUse brings the record up to date after a look.
func (w *Watcher) recordUse() error {
	current, _ := w.cfg.Sealer.Current()
	return w.use.keep(current.ID, w.cfg.Sealer.Late())
}

// Use returns which keys this node used, and when. It is safe for concurrent use.
func (w *Watcher) Use() Use { return w.use.use(w.cfg.Sealer.Late()) }
