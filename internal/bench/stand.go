package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"time"

	"kekd/hsm/hsmtest"
	"kekd/internal/demo/sandbox"
)

// The names of the targets that report starts, beside the no-op and its control.
const (
	seededName = "seeded"
	directName = "direct"
	naiveName  = "naive"
)

// cacheSize is seeds.cacheSize of the kekds: more than any -seeds should ask for.
const cacheSize = 1 << 14

// stand is a token with everything that is measured on it.
type stand struct {
	o      fullOptions
	stderr io.Writer
	box    *sandbox.Sandbox
	// slowed are the control files of the fault-injecting module, one for each
	// process that loads it.
	slowed []string

	daemons map[string]*sandbox.Daemon // kekds, by target
	stops   []func() error
	// targets are there after open. The first is the no-op.
	targets  []*target
	closeAll func()
}

// newStand makes the token and its KEK.
func newStand(ctx context.Context, o fullOptions, stderr io.Writer) (*stand, error) {
	for _, binary := range []string{o.faults, o.noop, o.naive} {
		if _, err := os.Stat(binary); err != nil {
			return nil, fmt.Errorf("%w: make bench builds it", err)
		}
	}
	box, err := sandbox.New(ctx, o.dir, o.kekd, o.kekctl)
	if err != nil {
		return nil, err
	}
	s := &stand{o: o, stderr: stderr, box: box, daemons: map[string]*sandbox.Daemon{}, closeAll: func() {}}
	d, err := box.Configure(ctx, "create", sandbox.Settings{Mode: seededName})
	if err != nil {
		return nil, err
	}
	if _, err := box.Ctl(ctx, d, "key", "create", "--yes"); err != nil {
		return nil, err
	}
	return s, nil
}

// close ends everything that still runs.
func (s *stand) close() error {
	s.closeAll()
	var errs []error
	for _, stop := range s.stops {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

// counts is the prefix of the files with which a target's module is controlled.
func (s *stand) counts(name string) string { return s.box.Path(name) }

// moduleEnv is the environment in which a target loads the fault-injecting module.
func (s *stand) moduleEnv(name string) []string {
	return []string{"KEKD_FAULTS_MODULE=" + sandbox.Module, "KEKD_FAULTS=" + s.counts(name)}
}

// configure prepares a kekd that loads the fault-injecting module.
func (s *stand) configure(ctx context.Context, name, mode string) (*sandbox.Daemon, error) {
	s.slowed = append(s.slowed, s.counts(name))
	return s.box.Configure(ctx, name, sandbox.Settings{
		Mode: mode, Module: absolute(s.o.faults), Env: s.moduleEnv(name),
		Sessions: s.o.sessions, CacheSize: cacheSize, Refresh: 10 * time.Second,
	})
}

// startNaive starts a naive plugin. The caller stops it.
func (s *stand) startNaive(name string) (*child, error) {
	s.slowed = append(s.slowed, s.counts(name))
	args := []string{
		"-module", absolute(s.o.faults), "-token", sandbox.TokenLabel, "-key", sandbox.Ring,
		"-pin-file", s.box.Path("pin"), "-sessions", fmt.Sprint(s.o.sessions),
	}
	return startPlugin(s.o.naive, args, append(s.box.Env(), s.moduleEnv(name)...), s.box.Path(""), name, s.stderr)
}

// open starts all targets for good and connects to them.
func (s *stand) open(ctx context.Context) error {
	if err := s.setLatency(0); err != nil {
		return err
	}
	specs, stop, err := startNoops(absolute(s.o.noop), s.box.Path(""), true, s.stderr)
	s.stops = append(s.stops, func() error { stop(); return nil })
	if err != nil {
		return err
	}
	for _, mode := range []string{seededName, directName} {
		d, err := s.configure(ctx, mode, mode)
		if err != nil {
			return err
		}
		if err := d.Start(ctx); err != nil {
			return err
		}
		s.daemons[mode] = d
		s.stops = append(s.stops, d.Stop)
		workers, err := childrenOf(d.PID())
		if err != nil {
			return err
		}
		specs = append(specs, targetSpec{
			name: mode, socket: d.Socket, pids: append([]int{d.PID()}, workers...), counter: moduleCounter(s.counts(mode)),
		})
	}
	n, err := s.startNaive(naiveName)
	if err != nil {
		return err
	}
	s.stops = append(s.stops, func() error { n.stop(); return nil })
	specs = append(specs, targetSpec{name: naiveName, socket: n.socket, pids: []int{n.pid}, counter: moduleCounter(s.counts(naiveName))})
	s.targets, s.closeAll, err = openTargets(ctx, specs, 1, "")
	return err
}

// slowCalls are the functions that reach out for the HSM, once for each operation:
// the time stands before the Init of a cryptographic operation, and the call that
// follows it is free. A client library that sends both makes an operation twice
// as slow, and the size query of the naive plugin slower still.
var slowCalls = []string{
	"C_OpenSession", "C_Login", "C_FindObjectsInit", "C_GetAttributeValue", "C_GenerateKey",
	"C_EncryptInit", "C_DecryptInit", "C_SignInit",
}

// setLatency makes the HSM slower, for all processes of the stand.
func (s *stand) setLatency(d time.Duration) error {
	var lines []string
	if d > 0 {
		for _, call := range slowCalls {
			lines = append(lines, fmt.Sprintf("%s ms=%d", call, d.Milliseconds()))
		}
	}
	for _, path := range s.slowed {
		if err := hsmtest.SetFaults(path, lines...); err != nil {
			return err
		}
	}
	return nil
}

// moduleCounter counts the operations that reached the PKCS#11 module through
// the fault-injecting module of this control file.
type moduleCounter string

func (c moduleCounter) read(context.Context) (float64, error) {
	counts, err := hsmtest.CallCounts(string(c))
	return float64(counts["C_EncryptInit"] + counts["C_DecryptInit"]), err
}

// operations is what the HSM had to do under load, warm-up included.
type operations struct {
	Target   string `json:"target"`
	Requests int    `json:"requests"`
	// ByKekd are the HSM operations by kekd's own metrics, by kind; nil for a target
	// that is no kekd.
	ByKekd map[string]float64 `json:"byKekd,omitempty"`
	// ByModule are the calls that the module counted, by function.
	ByModule map[string]uint64 `json:"byModule"`
}

// countOperations reads all counters, by target.
func (s *stand) countOperations(ctx context.Context) (map[string]operations, error) {
	all := map[string]operations{}
	for _, name := range []string{seededName, directName, naiveName} {
		o := operations{Target: name}
		var err error
		if d := s.daemons[name]; d != nil {
			if o.ByKekd, err = d.Operations(ctx); err != nil {
				return nil, err
			}
		}
		if o.ByModule, err = hsmtest.CallCounts(s.counts(name)); err != nil {
			return nil, err
		}
		all[name] = o
	}
	return all, nil
}

// newOperations is the difference between two readings, in the targets' order.
func newOperations(targets []*target, before, after map[string]operations) []operations {
	var list []operations
	for _, t := range targets {
		o, ok := after[t.name]
		if !ok {
			continue
		}
		o.Requests = int(t.requests.Load())
		o.ByKekd, o.ByModule = maps.Clone(o.ByKekd), maps.Clone(o.ByModule)
		for op, n := range before[t.name].ByKekd {
			o.ByKekd[op] -= n
		}
		for call, n := range before[t.name].ByModule {
			o.ByModule[call] -= n
		}
		list = append(list, o)
	}
	return list
}

// footprint is the memory of a target at the end of the load.
type footprint struct {
	Target  string `json:"target"`
	Process memory `json:"process"`
	// Worker is kekd's worker process; nil for a target that has none.
	Worker *memory `json:"worker,omitempty"`
}

func (s *stand) measureMemory() ([]footprint, error) {
	var list []footprint
	for _, t := range s.targets {
		f := footprint{Target: t.name}
		for i, pid := range t.pids {
			m, err := memoryOf(pid)
			if err != nil {
				return nil, fmt.Errorf("measure the memory of %s: %w", t.name, err)
			}
			if i == 0 {
				f.Process = m
			} else {
				f.Worker = &m
			}
		}
		list = append(list, f)
	}
	return list, nil
}

func absolute(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	dir, err := os.Getwd()
	if err != nil {
		return path
	}
	return dir + "/" + path
}
