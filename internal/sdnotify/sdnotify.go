// Package sdnotify tells systemd how the daemon is doing (sd_notify(3)). Without
// systemd, that is without NOTIFY_SOCKET, nothing happens.
package sdnotify

import (
	"fmt"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready says that the socket is served. kekd says so before the HSM answers,
// since units that wait for it must not wait for the HSM; status tells the rest
// in one line for `systemctl status`.
func Ready(status string) error { return notify(daemon.SdNotifyReady, status) }

// Stopping says that the daemon drains its requests and ends.
func Stopping() error { return notify(daemon.SdNotifyStopping, "") }

// notify sends one message. A failure is worth a log line, nothing more.
func notify(state, status string) error {
	lines := []string{state}
	if status != "" {
		// A line break would start another assignment.
		lines = append(lines, "STATUS="+strings.Join(strings.Fields(status), " "))
	}
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
