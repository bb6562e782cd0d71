package lock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestTake(t *testing.T) {
	dir := t.TempDir()
	release, err := Take(t.Context(), dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Take(t.Context(), dir, 0)
	if want := fmt.Sprintf("(pid %d)", os.Getpid()); !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), want) {
		t.Errorf("a second Take: %v, want ErrHeld with %s", err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Take(ctx, dir, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted Take: %v, want %v", err, context.Canceled)
	}
	release()
	release, err = Take(t.Context(), dir, 0)
	if err != nil {
		t.Fatalf("Take after the release: %v", err)
	}
	release()
}

func TestTakeWaits(t *testing.T) {
	dir := t.TempDir()
	release, err := Take(t.Context(), dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(2*retry, release)
	release, err = Take(t.Context(), dir, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	release()
}
