package main

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kekd/hsm/wire"
	"kekd/internal/admin/newkey"
	"kekd/internal/httpapi"
	"kekd/internal/kek"
)

func newKeyImport(a *app) *cobra.Command {
	return group("import", "Bring a key of your own onto the token", newKeyImportBegin(a), newKeyImportFinish(a), newKeyImportAbort(a))
}

func newKeyImportBegin(a *app) *cobra.Command {
	var yes bool
	var bits int
	c := &cobra.Command{
		Use:   "begin",
		Short: "Make a one-time key to wrap your own key with",
		Long: `Make an RSA key pair on the token, to wrap one key with. The private half never
leaves the token and can do nothing but unwrap. The public half is printed as PEM,
and on stderr how to wrap with it. Where a pair is left from before, that one is
printed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if bits != 2048 && bits != 3072 && bits != 4096 {
				return codeError{exitUsage, fmt.Sprintf("--bits: must be 2048, 3072 or 4096, got %d", bits)}
			}
			return a.keyImportBegin(cmd.Context(), yes, bits)
		},
	}
	addYes(c, &yes)
	c.Flags().IntVar(&bits, "bits", 3072, "size of the RSA key")
	return c
}

func (a *app) keyImportBegin(ctx context.Context, yes bool, bits int) error {
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	s, err := a.openAdmin()
	if err != nil {
		return err
	}
	defer s.close()
	state, err := s.token.ImportState(ctx)
	if err != nil {
		return err
	}
	if !offers(state, wire.RSAOAEP) && !offers(state, wire.RSAAESKeyWrap) {
		return codeError{exitFailed, "the token unwraps no key by RSA; it offers " + listMethods(state.Methods)}
	}
	for _, id := range state.Leftovers {
		a.note("An import that was cut off has left %s; kekctl key import abort removes it.", kek.ID(id))
	}
	if len(state.Pairs) > 0 {
		// One that nobody has unwrapped with yet is as good as new.
		key := state.Pairs[0]
		a.note("The key pair %s is there already; kekctl key import abort removes it.", kek.ID(key.ID))
		return a.printWrappingKey(state.Methods, key)
	}
	token, err := s.token.Info(ctx)
	if err != nil {
		return err
	}
	a.note("Makes an RSA key pair of %d bits on token %q (serial %s).", bits, token.Label, token.Serial)
	if err := a.confirm(ctx, yes); err != nil {
		return err
	}
	key, err := s.token.BeginImport(ctx, bits)
	if err != nil {
		return err
	}
	return a.printWrappingKey(state.Methods, key)
}

func offers(state wire.ImportState, m wire.ImportMethod) bool {
	return slices.Contains(state.Methods, m)
}

func listMethods(methods []wire.ImportMethod) string {
	if len(methods) == 0 {
		return "none of the methods that kekctl knows"
	}
	names := make([]string, 0, len(methods))
	for _, m := range methods {
		names = append(names, string(m))
	}
	return strings.Join(names, ", ")
}

// fingerprint names a public key.
func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// printWrappingKey prints a public key, and how to wrap with it.
func (a *app) printWrappingKey(methods []wire.ImportMethod, key wire.WrappingKey) error {
	public, err := x509.ParsePKIXPublicKey(key.PublicKey)
	if err != nil {
		return fmt.Errorf("read the public key that the token made: %w", err)
	}
	bits := 0
	if k, ok := public.(*rsa.PublicKey); ok {
		bits = k.N.BitLen()
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key.PublicKey}))
	shown := struct {
		WrappingKey string              `json:"wrappingKey"`
		Fingerprint string              `json:"fingerprint"`
		Bits        int                 `json:"bits"`
		PublicKey   string              `json:"publicKey"`
		Methods     []wire.ImportMethod `json:"methods"`
		Hashes      []wire.OAEPHash     `json:"hashes"`
	}{kek.ID(key.ID).String(), fingerprint(key.PublicKey), bits, text, methods, key.Hashes}
	if err := a.print(shown, func(w io.Writer) { _, _ = io.WriteString(w, text) }); err != nil {
		return err
	}
	a.note("\nWrapping key %s, RSA of %d bits, %s", shown.WrappingKey, bits, shown.Fingerprint)
	a.note("%s", wrapCommands(methods, key.Hashes))
	return nil
}

// wrapCommands says how to wrap 32 bytes in kek.bin for the public key in import.pem.
func wrapCommands(methods []wire.ImportMethod, hashes []wire.OAEPHash) string {
	h := wire.SHA256
	if len(hashes) > 0 {
		h = hashes[0]
	}
	oaep := fmt.Sprintf("openssl pkeyutl -encrypt -pubin -inkey import.pem -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:%s -pkeyopt rsa_mgf1_md:%s", h, h)
	const hexOf = `"$(od -An -vtx1 %s | tr -d ' \n')"`
	kwp := func(by, out string) string {
		return fmt.Sprintf("openssl enc -id-aes256-wrap-pad -iv A65959A6 -K "+hexOf+" -in kek.bin %s kek.wrapped", by, out)
	}
	lines := []string{
		"Where the key is, in kek.bin as 32 raw bytes, and the PEM in import.pem, compute its check value:",
		"  head -c16 /dev/zero | openssl enc -aes-256-ecb -nopad -K " + fmt.Sprintf(hexOf, "kek.bin") + " | head -c3 | od -An -vtx1 | tr -d ' \\n'",
	}
	for _, m := range methods {
		lines = append(lines, "Wrap it by "+string(m)+":")
		finish := fmt.Sprintf("  kekctl key import finish kek.wrapped --method %s", m)
		switch m {
		case wire.RSAOAEP:
			lines = append(lines, "  "+oaep+" -in kek.bin -out kek.wrapped")
			finish += " --hash " + string(h)
		case wire.RSAAESKeyWrap:
			lines = append(lines, "  openssl rand -out once.bin 32", "  "+oaep+" -in once.bin -out kek.wrapped", "  "+kwp("once.bin", ">>"))
			finish += " --hash " + string(h)
		case wire.AESKWP:
			lines = append(lines, "  (under an AES key that the token has too, in transport.bin, which needs no key pair)", "  "+kwp("transport.bin", ">"))
			finish += " --wrapping-key ID"
		}
		lines = append(lines, finish+" --check-value HEX")
	}
	return strings.Join(lines, "\n")
}

// importFlags are the flags of finish.
type importFlags struct {
	yes         bool
	method      string
	hash        string
	wrappingKey string
	checkValue  string
	source      string
}

func newKeyImportFinish(a *app) *cobra.Command {
	var f importFlags
	var delay time.Duration
	c := &cobra.Command{
		Use:   "finish FILE",
		Short: "Unwrap your own key into the ring",
		Long: `Unwrap the key in FILE, 32 bytes wrapped for the token, into the ring as a KEK:
sensitive and not extractable from now on. Before it joins the ring its size, its
check value and its attributes are checked as far as the token tells, and it is
proven; a key that fails is destroyed again. The one-time key pair is removed at
the end. When it activates is as with kekctl key create.

The token marks the key for good as one that it did not generate, and this node
records where it came from: kekctl key export-attributes shows both.`,
		Args: exactlyOne("the file with the wrapped key"),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := cmd.Flags().Changed("activate-in")
			if err := checkDelay(delay); err != nil {
				return err
			}
			req, err := f.request(args[0])
			if err != nil {
				return err
			}
			return a.keyImportFinish(cmd.Context(), f, req, func(s *session) newkey.Plan { return s.delayed(delay, given) })
		},
	}
	addYes(c, &f.yes)
	c.Flags().StringVar(&f.method, "method", string(wire.RSAOAEP), "how the key is wrapped: rsa-oaep, rsa-aes-key-wrap or aes-kwp")
	c.Flags().StringVar(&f.hash, "hash", string(wire.SHA256), "`hash` of RSA-OAEP and of its mask generation function: sha256 or sha1")
	c.Flags().StringVar(&f.wrappingKey, "wrapping-key", "", "CKA_ID of the key that unwraps (default the one-time key pair)")
	c.Flags().StringVar(&f.checkValue, "check-value", "", "what the key's check value must be, as six hexadecimal `digits`")
	c.Flags().StringVar(&f.source, "source", "", "where the key comes from, for the record")
	c.Flags().DurationVar(&delay, "activate-in", 0, "when the key becomes the primary (default 0s where the ring has no primary, else 5m)")
	return c
}

// maxWrapped is far above what any method makes of 32 bytes.
const maxWrapped = 16 << 10

// request checks the flags and reads the file. The key's CKA_ID is still open.
func (f importFlags) request(path string) (wire.ImportRequest, error) {
	usage := func(format string, args ...any) (wire.ImportRequest, error) {
		return wire.ImportRequest{}, codeError{exitUsage, fmt.Sprintf(format, args...)}
	}
	req := wire.ImportRequest{Method: wire.ImportMethod(f.method)}
	if !slices.Contains(wire.ImportMethods(), req.Method) {
		return usage("--method: must be one of %s, got %q", listMethods(wire.ImportMethods()), f.method)
	}
	if req.Method != wire.AESKWP {
		req.Hash = wire.OAEPHash(f.hash)
		if req.Hash != wire.SHA256 && req.Hash != wire.SHA1 {
			return usage("--hash: must be sha256 or sha1, got %q", f.hash)
		}
	}
	if f.wrappingKey != "" {
		id, err := kek.ParseID(f.wrappingKey)
		if err != nil {
			return usage("--wrapping-key: %v", err)
		}
		req.WrappingKey = []byte(id)
	} else if req.Method == wire.AESKWP {
		return usage("--wrapping-key: aes-kwp needs the CKA_ID of the AES key that unwraps")
	}
	if f.checkValue != "" {
		v, err := hex.DecodeString(f.checkValue)
		if err != nil || len(v) != len(kek.CheckValue{}) {
			return usage("--check-value: must be six hexadecimal digits, got %q", f.checkValue)
		}
		given := kek.CheckValue(v)
		req.CheckValue = &given
	}
	file, err := os.Open(path) //nolint:gosec // G304: the administrator names it
	if err != nil {
		return wire.ImportRequest{}, fmt.Errorf("read the wrapped key: %w", err)
	}
	defer file.Close()
	req.Wrapped, err = io.ReadAll(io.LimitReader(file, maxWrapped+1))
	if err == nil && len(req.Wrapped) > maxWrapped {
		err = errors.New("the file is longer than any wrapped key")
	}
	if err != nil {
		return wire.ImportRequest{}, fmt.Errorf("read the wrapped key %s: %w", path, err)
	}
	return req, nil
}

func (a *app) keyImportFinish(ctx context.Context, f importFlags, req wire.ImportRequest, plan func(*session) newkey.Plan) error {
	s, err := a.openAdmin()
	if err != nil {
		return err
	}
	defer s.close()
	public, err := s.chooseWrappingKey(ctx, &req)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("Imports an AES-256 key by %s", req.Method)
	made, err := a.maker(ctx, s, f.yes, plan(s), what, func(ctx context.Context, id kek.ID) (kek.Info, kek.Mechanism, error) {
		req.ID = []byte(id)
		return s.token.Import(ctx, req)
	}).Make(ctx)
	if err != nil {
		return err
	}
	key, mechanism := made.Key, made.Mechanism
	sum := sha256.Sum256(req.Wrapped)
	from := provenance{
		Time: time.Now().UTC(), UID: os.Getuid(), SudoUser: os.Getenv("SUDO_USER"), Source: f.source,
		Method: req.Method, Hash: req.Hash, WrappingKey: kek.ID(req.WrappingKey).String(),
		WrappedSHA256: hex.EncodeToString(sum[:]), CheckValue: key.CheckValue.String(), Confirmed: req.CheckValue != nil,
	}
	if public != nil {
		from.Fingerprint = fingerprint(public)
	}
	if token, ok := s.token.Describe(); ok {
		from.TokenSerial = token.Serial
	}
	// Whatever fails from here on, the key is in the ring and is printed.
	later := saveProvenance(s.store, key.ID, from)
	if public != nil {
		ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
		defer cancel()
		later = errors.Join(later, s.token.AbortImport(ctx, kek.ID(req.WrappingKey)))
	}
	a.note("The token marks the key as imported (CKA_LOCAL=false), wherever it is listed.")
	return errors.Join(a.printImported(key, mechanism, from), later)
}

// printImported prints an imported key and where it came from.
func (a *app) printImported(key kek.Info, mechanism kek.Mechanism, from provenance) error {
	one := httpapi.NewKeyRing(&kek.Ring{Label: key.Ring, Keys: []kek.Info{key}}, time.Now()).Keys[0]
	one.Mechanism = mechanism.String()
	shown := struct {
		httpapi.Key
		Provenance provenance `json:"provenance"`
	}{one, from}
	return a.print(shown, func(w io.Writer) {
		createdRows(w, key, mechanism)
		confirmed := "compare it with the owner's"
		if from.Confirmed {
			confirmed = "as given"
		}
		row(w, "check value", fmt.Sprintf("%s (%s)", key.CheckValue, confirmed))
		row(w, "wrapped", fmt.Sprintf("by %s, sha256:%s", from.Method, from.WrappedSHA256))
	})
}

// chooseWrappingKey checks that the token can unwrap what is asked for, and finds
// the one-time key pair where none is named. It returns the public key, nil where
// an AES key unwraps.
func (s *session) chooseWrappingKey(ctx context.Context, req *wire.ImportRequest) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	state, err := s.token.ImportState(ctx)
	if err != nil {
		return nil, err
	}
	if !offers(state, req.Method) {
		return nil, codeError{exitFailed, fmt.Sprintf("--method: the token does not unwrap by %s; it offers %s", req.Method, listMethods(state.Methods))}
	}
	if req.Method == wire.AESKWP {
		return nil, nil
	}
	pairs := state.Pairs
	if len(req.WrappingKey) > 0 {
		pairs = slices.DeleteFunc(pairs, func(k wire.WrappingKey) bool { return string(k.ID) != string(req.WrappingKey) })
	}
	switch {
	case len(pairs) == 0:
		return nil, codeError{exitFailed, "the token has no such one-time key pair; kekctl key import begin makes one, and shows the one that is there"}
	case len(pairs) > 1:
		return nil, codeError{exitFailed, fmt.Sprintf("the token has %d one-time key pairs; name one by --wrapping-key, and remove the others by kekctl key import abort", len(pairs))}
	}
	key := pairs[0]
	if len(key.Hashes) > 0 && !slices.Contains(key.Hashes, req.Hash) {
		return nil, codeError{exitFailed, fmt.Sprintf("--hash: the token does no RSA-OAEP with %s; wrap the key again with %s, and pass --hash %s", req.Hash, key.Hashes[0], key.Hashes[0])}
	}
	req.WrappingKey = key.ID
	return key.PublicKey, nil
}

func newKeyImportAbort(a *app) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "abort ID",
		Short: "Remove a one-time key pair, or what a cut off import has left",
		Long: `Remove a one-time key pair that kekctl key import begin made, or a key whose import
was cut off before it joined the ring. Keys of the ring are not touched.`,
		Args: exactlyOne("the CKA_ID that kekctl key import begin shows"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := kek.ParseID(args[0])
			if err != nil {
				return codeError{exitUsage, err.Error()}
			}
			return a.keyImportAbort(cmd.Context(), yes, id)
		},
	}
	addYes(c, &yes)
	return c
}

func (a *app) keyImportAbort(ctx context.Context, yes bool, id kek.ID) error {
	s, err := a.openAdmin()
	if err != nil {
		return err
	}
	defer s.close()
	a.note("Removes wrapping key %s from the token: what was wrapped for it can't be unwrapped any more.", id)
	if err := a.confirm(ctx, yes); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	if err := s.token.AbortImport(ctx, id); err != nil {
		return err
	}
	removed := struct {
		Removed string `json:"removed"`
	}{id.String()}
	return a.print(removed, func(w io.Writer) { row(w, "removed", removed.Removed) })
}
