package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kekd/e2e/internal/harness"
)

const (
	// sealPace and writePace are the clients' pauses.
	sealPace  = 100 * time.Millisecond
	writePace = 400 * time.Millisecond
	// repairWithin bounds the last rotation, which may have to wait for a key that is
	// pending, and for kube-apiserver's backoff of up to two minutes.
	repairWithin = 8 * time.Minute
	// enoughChanges is how many a history must have to show anything.
	enoughChanges = 4
	// patience is an administrator's with a command in a cluster that breaks.
	patience = 20 * time.Second
	// recent is how long after its last use no key may go out of use without --force:
	// less than what kekctl waits for.
	recent = time.Minute
)

// TestRandom has two administrators run random commands on a control plane that breaks at
// random, and requires that nothing is lost that was acknowledged, that kekctl reports
// what the token holds, and that one rotation ends all trouble.
func TestRandom(t *testing.T) {
	t.Parallel()
	t.Logf("seed %d, length %v: go test -run TestRandom -seed %d -length %v", flags.seed, flags.length, flags.seed, flags.length)
	w := newWorld(t, 3, 3, smallDisk)
	h := &history{w: w, begun: time.Now(), secrets: map[string]string{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the history of seed %d:\n%s", flags.seed, h)
		}
	})
	end, stop := context.WithCancel(t.Context())
	defer stop()
	go h.stopAfter(end, flags.length, stop)
	var work, clients sync.WaitGroup
	sealing, enough := context.WithCancel(t.Context())
	for _, n := range w.nodes {
		clients.Go(func() { h.sealAt(sealing, n) })
		clients.Go(func() { h.writeAt(sealing, n) })
	}
	for i := range 2 {
		work.Go(func() { h.administrate(end, i) })
	}
	h.damage(end, t)
	work.Wait()
	h.repair(t)
	enough()
	clients.Wait()
	h.rotate(t)
	h.check(t)
}

// history is what happened, and what must hold.
type history struct {
	w     *world
	begun time.Time

	mu      sync.Mutex
	lines   []string
	changes []change
	values  []value
	// secrets are those that an API server has acknowledged, by name, with the key_id
	// in etcd.
	secrets map[string]string
	trouble []string
	wiped   [3]int // how often each node's state was
}

// value was sealed by a node.
type value struct {
	at    time.Time
	by    *node
	wiped int // the node's state had been, so often
	sealed
}

// stopAfter stops the history after a time, or later if too little has happened by then,
// as on a busy machine.
func (h *history) stopAfter(c ctx, length time.Duration, stop func()) {
	harness.Every(c, time.Second, func() bool {
		past := time.Since(h.begun)
		return past > length && h.made() >= enoughChanges || past > 4*length
	})
	stop()
}

// made counts the changes that kekctl has reported.
func (h *history) made() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, c := range h.changes {
		if c.done && c.verb != "look" && c.verb != "set" {
			n++
		}
	}
	return n
}

// String is the history, one event to a line.
func (h *history) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.lines, "\n")
}

func (h *history) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, fmt.Sprintf("%7.2f  ", time.Since(h.begun).Seconds())+fmt.Sprintf(format, args...))
}

// wrong notes what must not happen.
func (h *history) wrong(format string, args ...any) {
	h.note("WRONG: "+format, args...)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trouble = append(h.trouble, fmt.Sprintf(format, args...))
}

// sealAt is a client of a kekd.
func (h *history) sealAt(c ctx, n *node) {
	i := slices.Index(h.w.nodes, n)
	harness.Every(c, sealPace, func() bool {
		h.mu.Lock()
		wiped := h.wiped[i]
		h.mu.Unlock()
		one, cancel := context.WithTimeout(c, callTimeout)
		defer cancel()
		plaintext := []byte(fmt.Sprintf("%s, %s", n.name, time.Now().Format(time.RFC3339Nano)))
		if s, err := n.kms.Encrypt(one, plaintext); err == nil {
			h.mu.Lock()
			h.values = append(h.values, value{time.Now(), n, wiped, sealed{n.name, plaintext, s}})
			h.mu.Unlock()
		}
		return false
	})
}

// writeAt is a client of an API server.
func (h *history) writeAt(c ctx, n *node) {
	count := 0
	harness.Every(c, writePace, func() bool {
		one, cancel := context.WithTimeout(c, 2*callTimeout)
		defer cancel()
		count++
		name := fmt.Sprintf("%s-%05d", strings.ReplaceAll(n.name, " ", "-"), count)
		if id, err := h.w.writeSecret(one, n, name); err == nil {
			h.mu.Lock()
			h.secrets[name] = id
			h.mu.Unlock()
		}
		return false
	})
}

// administrate is one of the administrators.
func (h *history) administrate(c ctx, who int) {
	r := rand.New(rand.NewPCG(flags.seed, uint64(who)))
	for c.Err() == nil {
		n := h.w.nodes[r.IntN(len(h.w.nodes))]
		args, target := h.choose(c, r, n)
		if args == nil {
			select {
			case <-c.Done():
			case <-time.After(200 * time.Millisecond):
			}
			continue
		}
		h.command(r, fmt.Sprintf("administrator %d on %s", who, n.name), n, args, target)
	}
}

// choose draws a command that makes sense for some key; nil if there is none.
func (h *history) choose(c ctx, r *rand.Rand, n *node) (args []string, target string) {
	keys, err := n.look(c)
	if err != nil {
		return nil, ""
	}
	of := func(states ...string) string {
		var ids []string
		for _, k := range keys {
			if slices.Contains(states, k.State) {
				ids = append(ids, k.ID)
			}
		}
		if len(ids) == 0 {
			return ""
		}
		return ids[r.IntN(len(ids))]
	}
	in := []string{"2s", "5s", "9s", "20s", "75s"}[r.IntN(5)]
	switch p := r.IntN(100); {
	case p < 18:
		return []string{"key", "create", "--yes", "--activate-in", in}, ""
	case p < 30:
		return []string{"key", "rotate", "--yes", "--now"}, ""
	case p < 45:
		return h.on("cancel", of("pending"))
	case p < 57:
		return h.on("disable", of("retired", "retired", "disabled"))
	case p < 65:
		return h.on("enable", of("disabled"))
	case p < 75:
		return h.on("destroy", of("retired", "disabled"), "--after", "30d")
	case p < 82:
		return h.on("restore", of("scheduled-for-destruction"))
	case p < 90:
		return h.on("purge", of("scheduled-for-destruction"))
	case p < 93:
		if id := of("primary", "retired"); id != "" {
			return []string{"revoke", id, "--yes"}, id
		}
		return nil, ""
	case p < 97:
		return []string{"rewrap", "--yes", "--method", "update", "--rate", "200"}, ""
	}
	return []string{"rotate", "--yes", "--activate-in", "4s", "--method", "update", "--rate", "200"}, ""
}

// on is a command on a key.
func (h *history) on(verb, id string, more ...string) ([]string, string) {
	if id == "" {
		return nil, ""
	}
	return append([]string{"key", verb, id, "--yes"}, more...), id
}

// look is what a node knows of the ring, by its /status.
func (n *node) look(c ctx) ([]key, error) {
	c, cancel := context.WithTimeout(c, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(c, http.MethodGet, n.kekd.URL+"/status", http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var status struct{ KeyRing struct{ Keys []key } }
	err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&status)
	return status.KeyRing.Keys, err
}

// command runs kekctl, interrupted perhaps, and notes what it reports.
func (h *history) command(r *rand.Rand, who string, n *node, args []string, target string) {
	c, err := n.launch(nil, args...)
	if err != nil {
		h.wrong("%s cannot start kekctl: %v", who, err)
		return
	}
	defer c.end()
	after := func(d time.Duration) bool {
		select {
		case <-c.exited:
			return false
		case <-time.After(d):
			return true
		}
	}
	harm := ""
	random := func(max time.Duration) time.Duration { return time.Duration(r.Int64N(int64(max))) }
	switch first, second, p := random(1500*time.Millisecond), random(4*time.Second), r.IntN(100); {
	case p < 15 && after(first):
		harm = "halted for " + second.Round(time.Millisecond).String()
		c.signal(syscall.SIGSTOP)
		after(second)
		c.signal(syscall.SIGCONT)
	case p < 25 && after(first):
		harm = "killed"
		c.signal(syscall.SIGKILL)
	}
	if !after(patience) { // it has ended
		harm = strings.TrimSpace(harm)
	} else {
		harm += fmt.Sprintf(" killed after %v", patience)
		c.end()
	}
	h.ended(who, c, target, harm)
}

// ended notes the end of a command.
func (h *history) ended(who string, c *command, target, harm string) {
	said := strings.Join(strings.Fields(c.stderr.String()), " ")
	if len(said) > 300 {
		said = said[:150] + " ... " + said[len(said)-150:]
	}
	h.note("%s, from %.2f: %s ended with %d %s %q", who, c.begun.Sub(h.begun).Seconds(), strings.Join(c.args[2:], " "), c.code, harm, said)
	if target == "" {
		return
	}
	verb := c.args[3]
	if c.args[2] == "revoke" {
		verb = "revoke"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changes = append(h.changes, change{
		key: target, verb: verb, begun: c.begun, ended: c.ended, done: c.code == 0,
		// A refusal that names its reason has changed nothing; what else fails may have.
		undone: c.code == 1 && strings.Contains(c.stderr.String(), "stays as it is"),
	})
}

// damage breaks one thing after the other until the end.
func (h *history) damage(c ctx, t *testing.T) {
	r := rand.New(rand.NewPCG(flags.seed, 99))
	pause := func(d time.Duration) {
		select {
		case <-c.Done():
		case <-time.After(d):
		}
	}
	random := func(max time.Duration) time.Duration { return time.Duration(r.Int64N(int64(max))) }
	for c.Err() == nil {
		pause(500*time.Millisecond + random(2500*time.Millisecond))
		i := r.IntN(len(h.w.nodes))
		n := h.w.nodes[i]
		switch r.IntN(10) {
		case 0, 1, 2:
			ahead := time.Duration(r.IntN(361)-180) * time.Second
			h.note("the clock of %s is %v ahead", n.name, ahead)
			n.kekd.JumpClock(t, ahead)
		case 3:
			h.note("the clock of %s is right", n.name)
			n.kekd.JumpClock(t, 0)
		case 4, 5:
			h.note("the token is away from %s", n.name)
			n.kekd.Token.TakeAway(t)
			pause(random(6 * time.Second))
			n.kekd.Token.PutBack(t)
			h.note("the token is back at %s", n.name)
		case 6:
			full := h.w.nodes[1]
			free := fill(t, full)
			h.note("the disk of %s is full", full.name)
			pause(random(6 * time.Second))
			free()
			h.note("the disk of %s has room", full.name)
		case 7, 8:
			h.note("kekd of %s is killed and started", n.name)
			n.kekd.Kill(t)
			n.kekd.Start(t)
		case 9:
			h.wipe(t, 2)
		}
		h.comeDue(r)
	}
}

// wipe starts a node over with an empty state directory.
func (h *history) wipe(t *testing.T, i int) {
	n := h.w.nodes[i]
	h.note("the state of %s is wiped", n.name)
	n.kekd.Kill(t)
	entries, err := os.ReadDir(n.kekd.StateDir())
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(n.kekd.StateDir(), e.Name())))
	}
	if err != nil {
		t.Fatalf("wipe the state: %v", err)
	}
	h.mu.Lock()
	h.wiped[i]++
	h.mu.Unlock()
	n.kekd.Start(t)
}

// comeDue has the date of a scheduled key come now and then, which takes a day at least
// otherwise. The state stays what it is.
func (h *history) comeDue(r *rand.Rand) {
	if r.IntN(3) > 0 {
		return
	}
	keys, err := tryToken(h.w.token, tokenRequest{Op: "list"})
	if err != nil {
		return // SoftHSM under two hands
	}
	h.observe(keys)
	i := slices.IndexFunc(keys, func(k tokenKey) bool { return k.state() == "scheduled" && k.Label != due() })
	if i < 0 {
		return
	}
	begun := time.Now()
	_, err = tryToken(h.w.token, tokenRequest{Op: "relabel", ID: keys[i].ID, NewLabel: due()})
	h.note("the date of key %s comes (%v)", keys[i].ID, err)
	h.mu.Lock()
	defer h.mu.Unlock()
	// An administrator may have restored it meanwhile; then this schedules it again.
	h.changes = append(h.changes, change{key: keys[i].ID, verb: "set", to: "scheduled", begun: begun, ended: time.Now(), done: err == nil})
}

// smallDisk gives a node a state directory with a file system of its own.
func smallDisk(t *testing.T, n *node) {
	t.Helper()
	dir := n.kekd.StateDir()
	if err := unix.Mount("kekd-chaos", dir, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		t.Fatalf("mount a small file system: %v; run this as root, who may", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount the small file system: %v", err)
		}
	})
}

// fill takes all room on a node's small disk.
func fill(t *testing.T, n *node) (free func()) {
	t.Helper()
	path := filepath.Join(n.kekd.StateDir(), "ballast")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	_ = f.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	return func() {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("make room on the disk: %v", err)
		}
	}
}

// repair puts everything right that damage has broken. The ring stays as it is.
func (h *history) repair(t *testing.T) {
	h.note("everything is put right")
	for _, n := range h.w.nodes {
		n.kekd.JumpClock(t, 0)
		if n.kekd.Token.IsAway() {
			n.kekd.Token.PutBack(t)
		}
		if !n.kekd.Running() {
			n.kekd.Start(t)
		}
	}
}

// rotate requires that one rotation gets the ring out of whatever state it is in.
func (h *history) rotate(t *testing.T) {
	n := h.w.nodes[0]
	c := n.start(t, "rotate", "--yes", "--activate-in", "5s", "--method", "update", "--rate", "1000")
	select {
	case <-c.exited:
	case <-time.After(repairWithin):
		c.end()
	}
	h.ended("at the end", c, "", "")
	if c.code != 0 {
		t.Errorf("the ring cannot be rotated out of trouble: %v", c)
	}
	for _, n := range h.w.nodes {
		harness.Eventually(t, time.Minute, n.name+" encrypts", func(c ctx) error {
			_, err := h.w.seal(c, n)
			return err
		})
	}
}

// check requires what must hold of the whole history.
func (h *history) check(t *testing.T) {
	h.observe(list(t, h.w.token))
	final, made := list(t, h.w.token), h.made()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, text := range h.trouble {
		t.Error(text)
	}
	t.Logf("%d values, %d Secrets, %d changes made, %d keys on the token", len(h.values), len(h.secrets), made, len(final))
	if len(h.values) == 0 || len(h.secrets) == 0 || made == 0 {
		t.Error("too little has happened: this run shows nothing")
	}
	h.checkChanges(t)
	h.checkValues(t, final)
	h.checkKeyIDs(t)
	h.checkSecrets(t)
}

// id is the CKA_ID in a key_id.
func id(keyID string) string {
	parts := strings.Split(keyID, "/")
	return parts[len(parts)-2]
}

// checkValues requires that every value opens whose key is in use, and that no key went
// out of use soon after it was used, but by a revocation.
func (h *history) checkValues(t *testing.T, final []tokenKey) {
	lost := map[string]int{}
	for _, v := range h.values {
		if stateIn(final, id(v.value.KeyID)) != "enabled" {
			h.checkGone(t, v, lost)
			continue
		}
		for _, n := range h.w.nodes {
			if err := n.opensSoon(t.Context(), v.sealed); err != nil {
				if lost[v.value.KeyID]++; lost[v.value.KeyID] == 1 {
					t.Errorf("LOST: %s does not open what %s sealed under %s: %v", n.name, v.by.name, v.value.KeyID, err)
				}
			}
		}
	}
	if len(lost) > 0 {
		t.Errorf("of %d values these are lost, by key: %v", len(h.values), lost)
	}
}

// checkGone requires that a change has put the value's key out of use, and not too soon.
func (h *history) checkGone(t *testing.T, v value, lost map[string]int) {
	t.Helper()
	for _, c := range h.changes {
		if c.key != id(v.value.KeyID) || c.undone || c.verb == "enable" || c.verb == "restore" {
			continue
		}
		// A node may keep using a revoked key for a moment, and with what is
		// disabled on purpose. A change that came later than recent is one that
		// was entitled to.
		if c.verb == "revoke" || c.verb == "set" || c.ended.Sub(v.at) > recent {
			return
		}
	}
	if lost[v.value.KeyID]++; lost[v.value.KeyID] == 1 {
		t.Errorf("LOST: what %s sealed at %.2f under %s, whose key went out of use within %v", v.by.name, v.at.Sub(h.begun).Seconds(), v.value.KeyID, recent)
	}
}

// checkKeyIDs requires that no node goes back to a key_id that it has replaced, unless
// its memory was wiped meanwhile.
func (h *history) checkKeyIDs(t *testing.T) {
	type memory struct {
		node  *node
		wiped int
	}
	current, before := map[memory]string{}, map[memory]map[string]bool{}
	for _, v := range h.values {
		m := memory{v.by, v.wiped}
		switch {
		case current[m] == v.value.KeyID:
		case before[m][v.value.KeyID]:
			t.Errorf("%s has gone back to %s at %.2f", v.by.name, v.value.KeyID, v.at.Sub(h.begun).Seconds())
			return
		default:
			if before[m] == nil {
				before[m] = map[string]bool{}
			}
			before[m][current[m]] = true
			current[m] = v.value.KeyID
		}
	}
}

// checkSecrets requires that API servers that remember nothing read every Secret, but
// those under a revoked key.
func (h *history) checkSecrets(t *testing.T) {
	n := h.w.nodes[1]
	n.apiserver.Kill(t)
	n.apiserver.Start(t)
	revoked := map[string]bool{}
	for _, c := range h.changes {
		if c.verb == "revoke" {
			revoked[c.key] = true
		}
	}
	n.apiserver.WaitStatus(t, "/readyz/kms-providers", http.StatusOK, 2*time.Minute)
	lost := 0
	for name, keyID := range h.secrets {
		var err error
		for range 3 {
			if _, err = n.kube.CoreV1().Secrets(metav1.NamespaceDefault).Get(t.Context(), name, metav1.GetOptions{}); err == nil {
				break
			}
		}
		if err != nil && !revoked[id(keyID)] {
			if lost++; lost == 1 {
				t.Errorf("LOST: the Secret %s, written under %s: %v", name, keyID, err)
			}
		}
	}
	if lost > 0 {
		t.Errorf("of %d Secrets %d are lost", len(h.secrets), lost)
	}
}
