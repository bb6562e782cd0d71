package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/admin/nodes"
	"kekd/internal/config"
	"kekd/internal/conformance"
	"kekd/internal/httpapi"
	"kekd/keycache"
)

func newStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Ask the running kekd how it is",
		Long: `Ask the socket what kube-apiserver would be told, and the HTTP endpoint for the
rest. Exits with 3 when kube-apiserver would find the plugin unhealthy.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context()) },
	}
}

// nodeStatus is what kekctl status prints as JSON.
type nodeStatus struct {
	// Socket is the answer to the Status call: ok, or the error.
	Socket string `json:"socket"`
	KeyID  string `json:"keyID,omitempty"`
	// HTTP is the answer of /status; null when it could not be had.
	HTTP      *httpapi.Status `json:"http"`
	HTTPError string          `json:"httpError,omitempty"`
}

func (a *app) status(ctx context.Context) error {
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return err
	}
	var out nodeStatus
	answer, err := askSocket(ctx, cfg.Socket.Path)
	healthy := err == nil && answer.GetHealthz() == "ok"
	switch {
	case err != nil:
		out.Socket = status.Convert(err).Message()
	default:
		out.Socket, out.KeyID = answer.GetHealthz(), answer.GetKeyId()
	}
	if cfg.HTTP.Address == "" {
		out.HTTPError = "turned off"
	} else if out.HTTP, err = nodes.Local(cfg.HTTP.Address).Status(ctx); err != nil {
		out.HTTPError = err.Error()
	}
	if err := a.print(out, func(w io.Writer) { statusTable(w, cfg, out) }); err != nil {
		return err
	}
	if !healthy {
		if remedy := outsider(cfg); remedy != "" {
			a.note("kekctl: hint: %s", remedy)
		}
		return codeError{code: exitUnhealthy}
	}
	return nil
}

// outsider says what to do where kekd refuses this very user, which a client
// cannot tell from a broken connection; empty where it does not.
func outsider(cfg config.Config) string {
	uid := os.Geteuid()
	if slices.Contains(cfg.Socket.AllowedUIDs, uint32(uid)) { //nolint:gosec // G115: a user id
		return ""
	}
	return fmt.Sprintf("kekd refuses callers with uid %d; run kekctl as a user of socket.allowedUIDs", uid)
}

const askTimeout = 3 * time.Second

// askSocket makes the call that kube-apiserver makes.
func askSocket(ctx context.Context, path string) (*kmsapi.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := conformance.Dial(path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return kmsapi.NewKeyManagementServiceClient(conn).Status(ctx, &kmsapi.StatusRequest{})
}

func statusTable(w io.Writer, cfg config.Config, s nodeStatus) {
	row(w, "socket", cfg.Socket.Path, s.Socket)
	if s.KeyID != "" {
		row(w, "key_id", s.KeyID)
	}
	if s.HTTP == nil {
		row(w, "http", cfg.HTTP.Address, s.HTTPError)
		return
	}
	h := s.HTTP.Health
	row(w, "health", string(h.State), h.Reason)
	row(w, "since", h.Since.Format(time.RFC3339))
	if !h.CoastingUntil.IsZero() {
		row(w, "coasting until", h.CoastingUntil.Format(time.RFC3339))
	}
	if t := s.HTTP.Token; t != nil {
		row(w, "token", fmt.Sprintf("%s (serial %s, %s)", t.Label, t.Serial, t.Library))
	}
	seeds := s.HTTP.Seeds
	row(w, "mode", seeds.Mode, seeds.Mechanism)
	if seeds.DirectUses > 0 {
		row(w, "direct uses", fmt.Sprintf("%d of %d", seeds.DirectUses, uint64(keycache.MaxDirectUses)))
	}
	if !seeds.Created.IsZero() {
		row(w, "seed", fmt.Sprintf("%d uses, made %s", seeds.Uses, seeds.Created.Format(time.RFC3339)))
	}
	row(w, "seeds cached", fmt.Sprintf("%d of %d", seeds.Cached, seeds.Capacity))
	if s.HTTP.RingProblem != "" {
		row(w, "ring problem", s.HTTP.RingProblem)
	}
	if r := s.HTTP.KeyRing; r != nil {
		for _, k := range r.Keys {
			row(w, "key", k.KeyID, k.State)
		}
	}
	row(w, "version", s.HTTP.Version.String())
}
