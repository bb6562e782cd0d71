package audit

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/zap"
)

// writerDir is in the environment of a process of this test that only writes.
const writerDir = "KEKD_AUDIT_TEST_DIR"

// writeForEver writes a trail until it is killed. What is acknowledged is counted on
// standard output.
func writeForEver(dir string) {
	l, err := Open(Config{
		Dir: dir, Chain: "kekd", Program: "test", MaxFileSize: 64 << 10, CheckpointEvery: time.Hour, CheckpointRecords: 1 << 30,
		Logger: zap.NewNop(), Clock: time.Now,
	})
	if err != nil {
		panic(err)
	}
	l.Start()
	for range 8 {
		go func() {
			for {
				if err := l.RecordWait(context.Background(), sample()); err != nil {
					panic(err)
				}
				fmt.Println() // one newline for each
			}
		}()
	}
	select {}
}

// A writer that is killed, over and over: each time the next one goes on, all that was
// acknowledged is there, and the whole verifies.
func TestKilledWriters(t *testing.T) {
	dir, signer := t.TempDir(), newSigner(t)
	acknowledged := 0
	for round := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), writerDir+"="+dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		buf := make([]byte, 4096)
		for seen := 0; seen < 500+100*round; {
			n, err := out.Read(buf)
			must(t, err)
			seen += n
			acknowledged += n
		}
		must(t, cmd.Process.Kill())
		for { // what it still managed to say
			n, err := out.Read(buf)
			acknowledged += n
			if err != nil {
				break
			}
		}
		_ = cmd.Wait() // killed
	}
	l := open(t, settings(dir, signer, func(c *Config) { c.MaxFileSize = 64 << 10 }))
	must(t, l.Close(t.Context()))
	r := verify(t, dir, VerifyOptions{Keys: signer.keys()})
	wantOK(t, r)
	if r.Events < uint64(acknowledged) || acknowledged == 0 || r.Files < 2 {
		t.Errorf("%d records in %d files, %d were acknowledged", r.Events, r.Files, acknowledged)
	}
}
