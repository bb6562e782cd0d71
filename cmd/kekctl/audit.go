package main

import (
	"bufio"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kekd/hsm/wire"
	"kekd/internal/audit"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/setup"
	"kekd/internal/state"
)

func newAudit(a *app) *cobra.Command {
	key := group("key", "The key on the token that signs the audit trail", newAuditKeyCreate(a), newAuditKeyShow(a))
	addAdminPIN(a, key.PersistentFlags())
	return group("audit", "Verify and search the audit trail", newAuditVerify(a), newAuditQuery(a), key)
}

func newAuditVerify(a *app) *cobra.Command {
	var publicKeys, expect []string
	var allowUnsigned bool
	c := &cobra.Command{
		Use:   "verify [DIR | FILE...]",
		Short: "Prove that nothing in the audit trail was changed, removed, moved or cut off",
		Long: `Read the audit trail of a directory (default: audit.dir) and check that each line
follows from the one before, that no file is missing, and that the signatures are
the token's. What is wrong is named by file, line and sequence; the exit code is 1.

With --public-key neither the token nor a configuration is needed. Without it the
keys are the token's, and what the state directory remembers of the trail's end must
be there. Single files may be part of a chain; a directory must be whole.

A trail that was put back to an older state as a whole can't be told by itself:
--expect names a line that is remembered elsewhere, as an earlier run of this command
printed it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, err := parseExpectations(expect)
			if err != nil {
				return codeError{exitUsage, err.Error()}
			}
			return a.auditVerify(cmd.Context(), args, publicKeys, audit.VerifyOptions{Expect: wanted, AllowUnsigned: allowUnsigned})
		},
	}
	c.Flags().StringArrayVar(&publicKeys, "public-key", nil, "PEM `file` with the public audit key, or several; may be repeated")
	c.Flags().StringArrayVar(&expect, "expect", nil, "a line that must be there: `[CHAIN=]SEQUENCE:HASH`, the chain being kekd or kekctl (default kekd); may be repeated")
	c.Flags().BoolVar(&allowUnsigned, "allow-unsigned", false, "accept a trail that is not signed, or not to its end")
	return c
}

// parseExpectations reads [CHAIN=]SEQUENCE:HASH.
func parseExpectations(texts []string) (map[string][]audit.Expectation, error) {
	wanted := map[string][]audit.Expectation{}
	for _, text := range texts {
		chain, rest, ok := strings.Cut(text, "=")
		if !ok {
			chain, rest = "kekd", text
		}
		number, digits, _ := strings.Cut(rest, ":")
		seq, err := strconv.ParseUint(number, 10, 64)
		if err != nil || seq == 0 {
			return nil, fmt.Errorf("--expect: want [CHAIN=]SEQUENCE:HASH, got %q", text)
		}
		hash, err := audit.ParseHash(digits)
		if err != nil {
			return nil, fmt.Errorf("--expect: the hash of sequence %d: %w", seq, err)
		}
		wanted[chain] = append(wanted[chain], audit.Expectation{Seq: seq, Hash: hash})
	}
	return wanted, nil
}

func (a *app) auditVerify(ctx context.Context, paths, publicKeys []string, o audit.VerifyOptions) error {
	if len(publicKeys) > 0 && len(paths) > 0 {
		keys := audit.PublicKeys{}
		for _, name := range publicKeys {
			text, err := os.ReadFile(name) //nolint:gosec // G304: the administrator names it
			if err != nil {
				return err
			}
			some, err := audit.ParsePublicKeys(text)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			maps.Copy(keys, some)
		}
		o.Keys = keys
		return a.printVerified(audit.Verify(ctx, paths, o))
	}
	if len(publicKeys) > 0 {
		return codeError{exitUsage, "--public-key: name the directory or the files to verify too"}
	}
	s, err := a.open()
	if err != nil {
		return fmt.Errorf("%w (with --public-key FILE DIR no configuration is needed)", err)
	}
	defer s.close()
	if len(paths) == 0 {
		if s.cfg.Audit.Dir == "" {
			return codeError{exitUsage, "audit.dir is not set, so name the directory"}
		}
		paths = []string{s.cfg.Audit.Dir}
	}
	if len(paths) == 1 && paths[0] == s.cfg.Audit.Dir {
		if err := remembered(s.store, o.Expect); err != nil {
			return err
		}
	}
	if o.Keys, err = s.auditKeys(ctx); err != nil {
		return err
	}
	return a.printVerified(audit.Verify(ctx, paths, o))
}

// remembered adds what the state directory remembers of the chains' ends.
func remembered(store *state.Dir, expect map[string][]audit.Expectation) error {
	for _, chain := range []string{"kekd", adminChain} {
		var p audit.Position
		found, err := store.Load(audit.MemoryName(chain), &p)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		hash, err := audit.ParseHash(p.Hash)
		if err != nil {
			return fmt.Errorf("%s: %w", store.Path(audit.MemoryName(chain)), err)
		}
		expect[chain] = append(expect[chain], audit.Expectation{Seq: p.Seq, Hash: hash})
	}
	return nil
}

// tokenKeys are the audit keys of the token: the public ones, and those for HMAC.
type tokenKeys struct {
	public audit.PublicKeys
	token  setup.AuditKeys
}

// Check implements audit.Keys.
func (k tokenKeys) Check(ctx context.Context, message []byte, s audit.Signature) error {
	if s.Algorithm == audit.HMAC {
		return k.token.Check(ctx, message, s)
	}
	return k.public.Check(ctx, message, s)
}

func (s *session) auditKeys(ctx context.Context) (audit.Keys, error) {
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	keys, err := s.token.AuditKeys(ctx)
	if err != nil {
		return nil, err
	}
	trusted := tokenKeys{audit.PublicKeys{}, setup.AuditKeys{Token: s.token.Token}}
	for _, k := range keys {
		if k.Algorithm != wire.ECDSAP256 {
			continue
		}
		some, err := audit.ParsePublicKeys(publicPEM(k))
		if err != nil {
			return nil, err
		}
		maps.Copy(trusted.public, some)
	}
	return trusted, nil
}

// publicPEM is a key's public half.
func publicPEM(k wire.AuditKey) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.PublicKey})
}

// printVerified prints what was found, and fails if anything is wrong.
func (a *app) printVerified(reports []*audit.Report, err error) error {
	if err != nil {
		return err
	}
	problems := 0
	for _, r := range reports {
		problems += r.Total
	}
	err = a.print(reports, func(w io.Writer) {
		for i, r := range reports {
			if i > 0 {
				row(w)
			}
			verifiedRows(w, r)
		}
	})
	if err == nil && problems > 0 {
		err = codeError{exitFailed, fmt.Sprintf("the audit trail does not hold: %d problem(s)", problems)}
	}
	return err
}

func verifiedRows(w io.Writer, r *audit.Report) {
	verdict := "holds"
	if !r.OK() {
		verdict = "DOES NOT HOLD"
	}
	row(w, "chain", r.Chain+" "+r.ID)
	row(w, "verdict", verdict)
	if r.Lines > 0 {
		row(w, "records", fmt.Sprintf("%d operations, %d lost, in %d lines, %d file(s), %d bytes", r.Events, r.Lost, r.Lines, r.Files, r.Bytes))
		row(w, "from", fmt.Sprintf("%d at %s", r.FirstSeq, r.FirstTime.Format(time.RFC3339)))
		row(w, "to", fmt.Sprintf("%d at %s", r.LastSeq, r.LastTime.Format(time.RFC3339)))
		row(w, "signed", fmt.Sprintf("%d checkpoint(s), the last one through %d at %s", r.Checkpoints, r.SignedThrough, r.SignedAt.Format(time.RFC3339)))
		row(w, "remember", fmt.Sprintf("--expect %s=%d:%s", r.Chain, r.LastSeq, r.LastHash))
	}
	for _, p := range r.Problems {
		row(w, "problem", p.String())
	}
	if more := r.Total - len(r.Problems); more > 0 {
		row(w, "problem", fmt.Sprintf("and %d more", more))
	}
	for _, n := range r.Notes {
		row(w, "note", n)
	}
}

func newAuditQuery(a *app) *cobra.Command {
	var since, until string
	var f audit.Filter
	var caller int64
	c := &cobra.Command{
		Use:   "query [DIR | FILE...]",
		Short: "Search the audit trail; it proves nothing, verify does",
		Long: `Print the operations on record that match all flags, by time, as a table or with
-o json as one JSON object a line, as they are in the files.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, o := range f.Operations {
				if !slices.Contains(audit.Operations(), o) {
					return codeError{exitUsage, fmt.Sprintf("--operation: there is no operation %q; there are %s", o, strings.Join(audit.Operations(), ", "))}
				}
			}
			now := time.Now()
			var err1, err2 error
			f.Since, err1 = parseMoment("--since", since, now)
			f.Until, err2 = parseMoment("--until", until, now)
			if err := errors.Join(err1, err2); err != nil {
				return codeError{exitUsage, err.Error()}
			}
			if caller >= 0 {
				uid := uint32(caller) //nolint:gosec // G115: not negative; more than 32 bits match nobody
				f.CallerUID = &uid
			}
			return a.auditQuery(cmd.Context(), args, f)
		},
	}
	c.Flags().StringVar(&since, "since", "", "from this `time` on: 2026-11-02T03:04:05Z, or 90m for as long ago")
	c.Flags().StringVar(&until, "until", "", "before this `time`")
	c.Flags().StringSliceVar(&f.Operations, "operation", nil, "`operations` such as decrypt or create, separated by commas")
	c.Flags().StringVar(&f.KeyID, "key", "", "a `part` of the key_id")
	c.Flags().StringVar(&f.UID, "uid", "", "the request's `uid`, as the API server's log has it")
	c.Flags().Int64Var(&caller, "caller-uid", -1, "the calling process's user `id`")
	c.Flags().StringVar(&f.Result, "result", "", "the `result`: ok or an error class; !ok is whatever failed, or began and did not end")
	c.Flags().IntVar(&f.Limit, "limit", 0, "at most so `many`")
	return c
}

// parseMoment reads a time, or how long ago it is.
func parseMoment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: want a time such as 2026-11-02T03:04:05Z or a duration such as 90m, got %q", flag, text)
	}
	return t, nil
}

func (a *app) auditQuery(ctx context.Context, paths []string, f audit.Filter) error {
	if len(paths) == 0 {
		cfg, err := config.Load(a.configPath)
		if err != nil {
			return err
		}
		if cfg.Audit.Dir == "" {
			return codeError{exitUsage, "audit.dir is not set, so name the directory"}
		}
		paths = []string{cfg.Audit.Dir}
	}
	lines := bufio.NewWriter(a.stdout)
	table := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	if a.output == "table" {
		row(table, "TIME", "CHAIN", "SEQUENCE", "OPERATION", "RESULT", "SOURCE", "LATENCY", "CALLER", "UID", "KEY", "DETAIL")
	}
	rows := 0
	skipped, err := audit.Query(ctx, paths, f, func(chain string, r *audit.Record, line []byte) error {
		if a.output == "json" {
			_, err := lines.Write(line)
			return err
		}
		recordRow(table, chain, r)
		if rows++; rows%1000 == 0 { // the widths of a thousand, and not all in memory
			return table.Flush()
		}
		return nil
	})
	if err == nil {
		err = errors.Join(table.Flush(), lines.Flush())
	}
	if skipped > 0 {
		a.note("kekctl: warning: %d lines are damaged and were passed over; kekctl audit verify says which", skipped)
	}
	return err
}

func recordRow(w io.Writer, chain string, r *audit.Record) {
	caller, operation, detail := "", r.Operation, r.Detail
	if r.Caller != nil {
		caller = fmt.Sprintf("uid %d pid %d", r.Caller.UID, r.Caller.PID)
	}
	if r.Lost > 0 {
		operation, detail = "(lost)", fmt.Sprintf("%d operations are not on record", r.Lost)
	}
	if r.Count > 0 {
		operation = fmt.Sprintf("%s ×%d", operation, r.Count)
	}
	row(w, r.Time.Format(time.RFC3339Nano), chain, strconv.FormatUint(r.Seq, 10), operation, r.Result, r.Source,
		time.Duration(r.LatencyNS).String(), caller, r.UID, r.KeyID, detail)
}

func newAuditKeyCreate(a *app) *cobra.Command {
	var yes bool
	var algorithm string
	c := &cobra.Command{
		Use:   "create",
		Short: "Create the key that signs the audit trail",
		Long: `Create a key on the token that signs the audit trail and nothing else: for ECDSA
with P-256 where the token has that, so that anyone can verify the trail with the
public key, and for HMAC-SHA256 otherwise. It carries the label "RING (audit)" and is
no part of the key ring.

kekd signs by it from the next checkpoint on. A further key takes the place of the
one before, which stays on the token to verify what it signed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.auditKeyCreate(cmd.Context(), yes, algorithm) },
	}
	addYes(c, &yes)
	c.Flags().StringVar(&algorithm, "algorithm", "", "ecdsa-p256-sha256 or hmac-sha256 (default: the first that the token has)")
	return c
}

func (a *app) auditKeyCreate(ctx context.Context, yes bool, algorithm string) error {
	if algorithm != "" && algorithm != string(wire.ECDSAP256) && algorithm != string(wire.HMACSHA256) {
		return codeError{exitUsage, fmt.Sprintf("--algorithm: want %s or %s, got %q", wire.ECDSAP256, wire.HMACSHA256, algorithm)}
	}
	s, err := a.openAdmin()
	if err != nil {
		return err
	}
	defer s.close()
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	token, err := s.token.Info(ctx)
	if err != nil {
		return err
	}
	keys, err := s.token.AuditKeys(ctx)
	if err != nil {
		return err
	}
	a.note("Creates a key for the audit trail on token %q (serial %s), beside %d other(s); kekd signs by it from then on.", token.Label, token.Serial, len(keys))
	if err := a.confirm(ctx, yes); err != nil {
		return err
	}
	key, err := s.token.CreateAuditKey(ctx, wire.AuditAlgorithm(algorithm))
	if err != nil {
		return err
	}
	return a.printAuditKeys([]wire.AuditKey{key})
}

func newAuditKeyShow(a *app) *cobra.Command {
	var asPEM bool
	c := &cobra.Command{
		Use:   "show",
		Short: "Show the keys that sign the audit trail, the oldest first",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.auditKeyShow(cmd.Context(), asPEM) },
	}
	c.Flags().BoolVar(&asPEM, "pem", false, "print the public keys in PEM, for kekctl audit verify --public-key")
	return c
}

func (a *app) auditKeyShow(ctx context.Context, asPEM bool) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.close()
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	keys, err := s.token.AuditKeys(ctx)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return codeError{exitFailed, "the token has no audit key; kekctl audit key create makes one"}
	}
	if !asPEM {
		return a.printAuditKeys(keys)
	}
	printed := 0
	for _, k := range keys {
		if k.Algorithm != wire.ECDSAP256 {
			a.note("The key %s is for HMAC and has no public half: only the token verifies what it signed.", kek.ID(k.ID))
			continue
		}
		printed++
		if _, err := a.stdout.Write(publicPEM(k)); err != nil {
			return err
		}
	}
	if printed == 0 {
		return codeError{exitFailed, "there is no public key to print"}
	}
	return nil
}

func (a *app) printAuditKeys(keys []wire.AuditKey) error {
	type shown struct {
		ID        string `json:"id"`
		Algorithm string `json:"algorithm"`
		Name      string `json:"name"`
		PublicKey string `json:"publicKey,omitempty"`
	}
	all := make([]shown, 0, len(keys))
	for _, k := range keys {
		one := shown{ID: kek.ID(k.ID).String(), Algorithm: string(k.Algorithm), Name: setup.AuditKeyName(k)}
		if k.PublicKey != nil {
			one.PublicKey = string(publicPEM(k))
		}
		all = append(all, one)
	}
	return a.print(all, func(w io.Writer) {
		row(w, "CKA_ID", "ALGORITHM", "NAME IN THE TRAIL")
		for _, k := range all {
			row(w, k.ID, k.Algorithm, k.Name)
		}
	})
}
