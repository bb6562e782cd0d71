package state

import (
	"fmt"
	"maps"
	"math"
	"sync"

	"kekd/internal/kek"
)

// usesName is the file of Uses.
const usesName = "direct-uses"

// Uses counts how often each KEK encrypted in direct mode on this node, across
// restarts. It satisfies keycache.Counter and is safe for concurrent use. Every
// Add is a durable write of the file, so callers reserve many uses at once.
type Uses struct {
	dir *Dir

	// mu guards counts, and is held while they are saved.
	mu     sync.Mutex
	counts map[kek.ID]uint64
}

// usesFile is the JSON of Uses: counts by CKA_ID in hexadecimal.
type usesFile struct {
	Uses map[string]uint64 `json:"uses"`
}

// OpenUses reads the counts kept in dir.
func OpenUses(dir *Dir) (*Uses, error) {
	var file usesFile
	if _, err := dir.Load(usesName, &file); err != nil {
		return nil, fmt.Errorf("read the use counts: %w", err)
	}
	u := &Uses{dir: dir, counts: make(map[kek.ID]uint64, len(file.Uses))}
	for text, n := range file.Uses {
		id, err := kek.ParseID(text)
		if err != nil {
			return nil, fmt.Errorf("read the use counts: %s: %w; restore it, or remove it to count from 0", dir.Path(usesName), err)
		}
		u.counts[id] = n
	}
	return u, nil
}

// Add adds n to the count of the key and returns the new total, which is then on
// disk. On an error nothing is counted.
func (u *Uses) Add(id kek.ID, n uint64) (uint64, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	next := maps.Clone(u.counts)
	next[id] = plus(next[id], n)

	file := usesFile{Uses: make(map[string]uint64, len(next))}
	for id, n := range next {
		file.Uses[id.String()] = n
	}
	if err := u.dir.Save(usesName, file); err != nil {
		return 0, fmt.Errorf("count %d uses of key %s: %w", n, id, err)
	}
	u.counts = next
	return next[id], nil
}

// plus adds without wrapping round: a count that a hand edit made huge must not
// begin again at 0.
func plus(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
