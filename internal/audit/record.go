package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// Version is that of the format.
const Version = 1

// MaxLine is the longest line in bytes, its newline included. What is longer is no
// line of ours.
const MaxLine = 16 << 10

// The operations of an Event.
const (
	Encrypt       = "encrypt"
	Decrypt       = "decrypt"
	CallerRefused = "caller-refused"
	Wrap          = "wrap"
	Unwrap        = "unwrap"
	Probe         = "probe"
	Prove         = "prove"
	Login         = "login"
	// Publish and Withdraw: the node began, or ceased, to encrypt under a key.
	Publish  = "publish"
	Withdraw = "withdraw"
	// State is a change of a key's state that the node saw on the token.
	State = "key-state"
	// Configure: the configuration differs from that of the run before.
	Configure = "configure"

	// The rest is what kekctl does, by the verb of its command where there is one for
	// the operation; the command itself is in the detail.
	Create      = "create"
	Cancel      = "cancel" // a pending key
	Disable     = "disable"
	Enable      = "enable"
	Destroy     = "destroy" // a destruction is scheduled
	Restore     = "restore"
	Purge       = "purge" // the key is gone
	Import      = "import"
	ImportBegin = "import-begin"
	ImportAbort = "import-abort"
	Unlatch     = "pin-unlatch"
	CreateAudit = "create-audit-key"
)

// Operations lists all of them.
func Operations() []string {
	return []string{
		Encrypt, Decrypt, CallerRefused, Wrap, Unwrap, Probe, Prove, Login, Publish, Withdraw, State, Configure,
		Create, Cancel, Disable, Enable, Destroy, Restore, Purge, Import, ImportBegin, ImportAbort, Unlatch, CreateAudit,
	}
}

// Where an Encrypt or Decrypt was served from.
const (
	FromSeed  = "seed"  // the seed in use
	FromCache = "cache" // a seed that was unwrapped before
	FromHSM   = "hsm"
)

// The Results that are no error classes.
const (
	OK = "ok"
	// Begun is recorded before what changes the token is done, so that a change whose
	// end nobody saw is on record too.
	Begun = "begun"
)

// Caller is a process on the node, as the kernel tells it.
type Caller struct {
	UID uint32 `json:"uid"`
	PID int32  `json:"pid"`
}

// Event is one operation. It never holds data: no plaintext, ciphertext, seed or PIN.
type Event struct {
	// Time is when it ended; zero means now.
	Time      time.Time
	Operation string
	// UID is what the client calls the request; anybody's choice.
	UID string
	// Caller is who asked, if Called.
	Caller Caller
	Called bool
	KeyID  string
	// Result is OK or an error class.
	Result  string
	Latency time.Duration
	// Source is one of the From… where it applies.
	Source string
	Detail string
	// Count is how many operations this stands for; 0 means one. Latency is then
	// the longest, and Time that of the last.
	Count uint64
}

// warm: a Decrypt that needed no HSM and succeeded. One with a detail keeps it.
func (e *Event) warm() bool {
	return e.Operation == Decrypt && e.Result == OK && e.Detail == "" && (e.Source == FromSeed || e.Source == FromCache)
}

// The types of a line.
const (
	typeFile       = "file"       // the first of each file
	typeRun        = "run"        // a writer has started
	typeEvent      = "event"      // an Event
	typeLost       = "lost"       // Events that could not be written
	typeRemoved    = "removed"    // a file that is deleted next
	typeCheckpoint = "checkpoint" // a signature
)

// Record is a line of the trail, as read. The order of its fields is that in which
// they are written.
type Record struct {
	V    int       `json:"v"`
	Seq  uint64    `json:"seq"`
	Type string    `json:"type"`
	Time time.Time `json:"time"`

	Operation string  `json:"operation,omitempty"`
	UID       string  `json:"uid,omitempty"`
	Caller    *Caller `json:"caller,omitempty"`
	KeyID     string  `json:"key_id,omitempty"`
	Result    string  `json:"result,omitempty"`
	LatencyNS int64   `json:"latency_ns,omitempty"`
	Source    string  `json:"source,omitempty"`
	Detail    string  `json:"detail,omitempty"`
	Count     uint64  `json:"count,omitempty"`

	File     *FileStart  `json:"file,omitempty"`
	Run      *RunStart   `json:"run,omitempty"`
	Found    *Found      `json:"found,omitempty"`
	Lost     uint64      `json:"lost,omitempty"`
	Removed  *Removed    `json:"removed,omitempty"`
	Signed   *Checkpoint `json:"checkpoint,omitempty"`
	HashText string      `json:"hash,omitempty"`
}

// FileStart begins a file.
type FileStart struct {
	// Chain is the writer's name, which the files have too, and ID what tells this
	// chain from any other of that name: 16 random bytes in hexadecimal.
	Chain string `json:"chain"`
	ID    string `json:"id"`
	// Number counts the chain's files from 1.
	Number uint64 `json:"number"`
	// Previous is the hash of the last line of the file before; zeros in the first.
	Previous string `json:"previous"`
}

// RunStart is a writer that has started.
type RunStart struct {
	Program string `json:"program"`
	Node    string `json:"node"`
	// Boot is the kernel's boot id, Run 16 random bytes in hexadecimal.
	Boot string `json:"boot,omitempty"`
	Run  string `json:"run"`
	PID  int    `json:"pid"`
	// CheckpointSeconds and CheckpointRecords are how much may be unsigned.
	CheckpointSeconds float64 `json:"checkpoint_seconds"`
	CheckpointRecords int     `json:"checkpoint_records"`
}

// What a writer found when it started.
const (
	FoundNew    = "new"    // nothing: a new chain
	FoundClosed = "closed" // the run before ended with a signature
	FoundOpen   = "open"   // it did not: a crash, or the HSM was away
	// FoundBroken: the last file's lines do not follow from each other.
	FoundBroken = "broken"
	// FoundResumed: the same writer could not write for a while.
	FoundResumed = "resumed"
	// FoundRolledBack: the files end before what the state directory remembers.
	FoundRolledBack = "rolled-back"
)

// Found is what a writer found when it started. Signed from now on, it was not
// before: a crash leaves the lines after the last checkpoint to whoever can write.
type Found struct {
	State string `json:"state"`
	// Seq and Hash are those of the last line that was found.
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
	// Unsigned is how many lines stood behind the last checkpoint.
	Unsigned uint64 `json:"unsigned,omitempty"`
	// Partial are the bytes of a last line that was cut off, in the file of this
	// number, and their SHA-256.
	Partial     int    `json:"partial,omitempty"`
	PartialFile uint64 `json:"partial_file,omitempty"`
	PartialHash string `json:"partial_hash,omitempty"`
	// ExpectedSeq and ExpectedHash are what the state directory remembers, where that
	// was not found.
	ExpectedSeq  uint64 `json:"expected_seq,omitempty"`
	ExpectedHash string `json:"expected_hash,omitempty"`
}

// Removed is a file that retention deletes.
type Removed struct {
	Number uint64 `json:"number"`
	// Through is the number of its last line.
	Through uint64 `json:"through"`
}

// Checkpoint is a signature over the state of the chain at a line before it.
type Checkpoint struct {
	// Through is the last line that it covers, with all before, and Last its hash.
	Through uint64 `json:"through"`
	Last    string `json:"last"`
	// At is when the signature was asked for, in Unix nanoseconds.
	At int64 `json:"at"`
	// Closed: the writer stopped; nothing of this run follows.
	Closed bool `json:"closed,omitempty"`
	Signature
}

// Message is what is signed.
func (c *Checkpoint) Message(chainID string) []byte {
	return fmt.Appendf(nil, "kekd audit checkpoint v1\nchain %s\nthrough %d\nlast %s\nat %d\nclosed %t\n",
		chainID, c.Through, c.Last, c.At, c.Closed)
}

// Hash is that of a line: SHA-256 over the hash of the line before and all bytes of
// the line up to `,"hash":`.
type Hash [sha256.Size]byte

// String spells h in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads what String writes.
func ParseHash(s string) (h Hash, err error) {
	if len(s) != 2*len(h) || bytes.ContainsAny([]byte(s), "ABCDEF") {
		return h, fmt.Errorf("want %d hexadecimal digits, lower case", 2*len(h))
	}
	_, err = hex.Decode(h[:], []byte(s))
	return h, err
}

const (
	hashMark = `,"hash":"`
	hashTail = len(hashMark) + 2*sha256.Size + len("\"}\n")
)

// seal ends a line that begins at start in buf and lacks its closing brace.
func seal(buf []byte, start int, previous Hash) ([]byte, Hash) {
	d := sha256.New()
	d.Write(previous[:])
	d.Write(buf[start:])
	var h Hash
	d.Sum(h[:0])
	buf = append(buf, hashMark...)
	buf = hex.AppendEncode(buf, h[:])
	return append(buf, "\"}\n"...), h
}

// unseal takes a line, with its newline, apart: what is hashed, and the hash that
// the line has.
func unseal(line []byte) (content []byte, h Hash, err error) {
	n := len(line) - hashTail
	if n < 2 || !bytes.HasPrefix(line[n:], []byte(hashMark)) || !bytes.HasSuffix(line, []byte("\"}\n")) {
		return nil, h, errors.New("it does not end in a hash")
	}
	text := line[n+len(hashMark) : len(line)-3]
	if h, err = ParseHash(string(text)); err != nil {
		return nil, h, fmt.Errorf("its hash: %w", err)
	}
	return line[:n], h, nil
}

// hashOf is the hash that content has behind previous.
func hashOf(previous Hash, content []byte) (h Hash) {
	d := sha256.New()
	d.Write(previous[:])
	d.Write(content)
	d.Sum(h[:0])
	return h
}

// parse reads a line without looking at the chain.
func parse(line []byte) (*Record, []byte, Hash, error) {
	content, h, err := unseal(line)
	if err != nil {
		return nil, nil, h, err
	}
	r := new(Record)
	if err := json.Unmarshal(line, r); err != nil {
		return nil, nil, h, fmt.Errorf("no JSON: %w", err)
	}
	if r.V != Version {
		return nil, nil, h, fmt.Errorf("version %d of the format; this is of version %d", r.V, Version)
	}
	whole := map[string]bool{
		typeFile: r.File != nil, typeRun: r.Run != nil && r.Found != nil, typeEvent: true,
		typeLost: r.Lost > 0, typeRemoved: r.Removed != nil, typeCheckpoint: r.Signed != nil,
	}
	if ok, known := whole[r.Type]; !known || !ok || r.Seq == 0 {
		return nil, nil, h, fmt.Errorf("no whole line of type %q", r.Type)
	}
	return r, content, h, nil
}

// glance reads of an Event's line what the chain needs, if it is one that a Log
// wrote: the rest is covered by the hash, and to parse it would take most of the time.
func glance(line []byte) (r *Record, content []byte, h Hash, ok bool) {
	content, h, err := unseal(line)
	rest, found := bytes.CutPrefix(content, []byte(`{"v":1,"seq":`))
	digits, rest, found2 := bytes.Cut(rest, []byte(`,"type":"event","time":"`))
	stamp, rest, found3 := bytes.Cut(rest, []byte(`","operation":"`))
	if err != nil || !found || !found2 || !found3 {
		return nil, nil, h, false
	}
	seq, err := strconv.ParseUint(string(digits), 10, 64)
	at, err2 := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil || err2 != nil || seq == 0 {
		return nil, nil, h, false
	}
	r = &Record{V: Version, Seq: seq, Type: typeEvent, Time: at}
	if i := bytes.LastIndex(rest, []byte(`,"count":`)); i >= 0 { // in a text the quotes are escaped
		if r.Count, err = strconv.ParseUint(string(rest[i+len(`,"count":`):]), 10, 64); err != nil {
			return nil, nil, h, false
		}
	}
	return r, content, h, true
}

// appendHead begins a line.
func appendHead(buf []byte, seq uint64, typ string, at time.Time) []byte {
	buf = append(buf, `{"v":1,"seq":`...)
	buf = strconv.AppendUint(buf, seq, 10)
	buf = append(buf, `,"type":"`...)
	buf = append(buf, typ...)
	buf = append(buf, `","time":"`...)
	buf = at.UTC().AppendFormat(buf, time.RFC3339Nano)
	return append(buf, '"')
}

// appendEvent writes an Event's line but for its hash. It is json.Marshal of a
// Record by hand, at a third of the time.
func appendEvent(buf []byte, seq uint64, e *Event) []byte {
	buf = appendHead(buf, seq, typeEvent, e.Time)
	buf = appendText(buf, `,"operation":`, e.Operation)
	buf = appendText(buf, `,"uid":`, e.UID)
	if e.Called {
		buf = append(buf, `,"caller":{"uid":`...)
		buf = strconv.AppendUint(buf, uint64(e.Caller.UID), 10)
		buf = append(buf, `,"pid":`...)
		buf = strconv.AppendInt(buf, int64(e.Caller.PID), 10)
		buf = append(buf, '}')
	}
	buf = appendText(buf, `,"key_id":`, e.KeyID)
	buf = appendText(buf, `,"result":`, e.Result)
	if e.Latency != 0 {
		buf = append(buf, `,"latency_ns":`...)
		buf = strconv.AppendInt(buf, int64(e.Latency), 10)
	}
	buf = appendText(buf, `,"source":`, e.Source)
	buf = appendText(buf, `,"detail":`, e.Detail)
	if e.Count != 0 {
		buf = append(buf, `,"count":`...)
		buf = strconv.AppendUint(buf, e.Count, 10)
	}
	return buf
}

// maxText bounds what of a text is kept, in bytes before it is quoted.
const maxText = 1024

// appendText appends a field, unless it is empty. Whatever is not printable ASCII
// is escaped: a uid may be any bytes.
func appendText(buf []byte, field, s string) []byte {
	if s == "" {
		return buf
	}
	if len(s) > maxText {
		s = s[:maxText]
	}
	buf = append(buf, field...)
	buf = append(buf, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			buf = append(buf, '\\', c)
			i++
		case c >= 0x20 && c < 0x7f:
			buf = append(buf, c)
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:]) // U+FFFD for what is no UTF-8
			i += n
			if r > 0xffff { // as a pair of surrogates
				r -= 0x10000
				buf = appendEscape(buf, 0xd800+r>>10)
				r = 0xdc00 + r&0x3ff
			}
			buf = appendEscape(buf, r)
		}
	}
	return append(buf, '"')
}

func appendEscape(buf []byte, r rune) []byte {
	const digits = "0123456789abcdef"
	return append(buf, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
}

// appendLine writes a line other than an Event's, but for its hash. fields is one
// of the parts of a Record.
func appendLine(buf []byte, seq uint64, typ string, at time.Time, fields Record) ([]byte, error) {
	buf = appendHead(buf, seq, typ, at)
	for _, f := range []struct {
		name  string
		value any
		set   bool
	}{
		{"file", fields.File, fields.File != nil}, {"run", fields.Run, fields.Run != nil}, {"found", fields.Found, fields.Found != nil},
		{"lost", fields.Lost, fields.Lost != 0}, {"removed", fields.Removed, fields.Removed != nil}, {"checkpoint", fields.Signed, fields.Signed != nil},
	} {
		if !f.set {
			continue
		}
		text, err := json.Marshal(f.value)
		if err != nil {
			return buf, fmt.Errorf("encode an audit line: %w", err)
		}
		buf = append(append(append(buf, `,"`...), f.name...), `":`...)
		buf = append(buf, text...)
	}
	return buf, nil
}
