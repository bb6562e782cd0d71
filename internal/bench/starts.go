package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsv2 "k8s.io/kms/apis/v2"
)

// start is how long a target takes until it is of use.
type start struct {
	Target     string  `json:"target"`
	HSMLatency float64 `json:"hsmLatencyMilliseconds"`
	// Seconds is from the start of the process to the first Encrypt that succeeded.
	Seconds summary `json:"seconds"`
	// Resident is the memory of all its processes then, in bytes, the most of all starts.
	Resident int64 `json:"residentBytes"`
}

// startTimeout bounds the time until a target answers.
const startTimeout = 30 * time.Second

// measureStarts starts each target several times, in turns.
func (s *stand) measureStarts(ctx context.Context) ([]start, error) {
	names := []string{noopName, seededName, directName, naiveName}
	var list []start
	for _, latency := range s.o.latencies.extremes() {
		times, resident := map[string][]float64{}, map[string]int64{}
		for range s.o.starts {
			for _, name := range names {
				d, bytes, err := s.startOnce(ctx, name, latency)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				times[name] = append(times[name], d.Seconds())
				resident[name] = max(resident[name], bytes)
			}
		}
		for _, name := range names {
			list = append(list, start{
				Target: name, HSMLatency: milliseconds(latency), Seconds: summarize(times[name]), Resident: resident[name],
			})
		}
	}
	return list, nil
}

// startOnce starts a target, waits for its first answer and stops it again.
func (s *stand) startOnce(ctx context.Context, name string, latency time.Duration) (took time.Duration, resident int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	begun := time.Now()
	var socket string
	var pid int
	switch name {
	case noopName, naiveName:
		var c *child
		if name == noopName {
			c, err = startPlugin(absolute(s.o.noop), nil, nil, s.box.Path(""), name+"-start", s.stderr)
		} else if err = s.slowStart(name, latency); err == nil {
			begun = time.Now()
			c, err = s.startNaive(name + "-start")
		}
		if err != nil {
			return 0, 0, err
		}
		defer c.stop()
		socket, pid = c.socket, c.pid
	default:
		d, err := s.configure(ctx, name+"-start", name)
		if err != nil {
			return 0, 0, err
		}
		if err := s.slowStart(name, latency); err != nil {
			return 0, 0, err
		}
		begun = time.Now()
		if err := d.Launch(); err != nil {
			return 0, 0, err
		}
		defer func() { err = errors.Join(err, d.Stop()) }()
		socket, pid = d.Socket, d.PID()
	}
	if err := firstAnswer(ctx, socket); err != nil {
		return 0, 0, err
	}
	took = time.Since(begun)
	children, err := childrenOf(pid)
	if err != nil {
		return 0, 0, err
	}
	for _, p := range append(children, pid) {
		m, err := memoryOf(p)
		if err != nil {
			return 0, 0, err
		}
		resident += m.Now
	}
	return took, resident, nil
}

// slowStart sets the latency of a target that is about to be started.
func (s *stand) slowStart(name string, latency time.Duration) error {
	s.slowed = append(s.slowed, s.counts(name+"-start"))
	return s.setLatency(latency)
}

// firstAnswer waits until a target encrypts. It connects as soon as the socket is
// there, without the pauses that a gRPC client makes.
func firstAnswer(ctx context.Context, socket string) error {
	const pause = time.Millisecond
	var raw net.Conn
	for {
		var d net.Dialer
		var err error
		if raw, err = d.DialContext(ctx, "unix", socket); err == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no connection: %w", err)
		}
		time.Sleep(pause)
	}
	conns := make(chan net.Conn, 1)
	conns <- raw
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			select {
			case c := <-conns:
				return c, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}))
	if err != nil {
		return errors.Join(err, raw.Close())
	}
	defer func() { _ = conn.Close() }()
	client := kmsv2.NewKeyManagementServiceClient(conn)
	for {
		_, err := client.Encrypt(ctx, &kmsv2.EncryptRequest{Plaintext: make([]byte, seedSize), Uid: "bench"})
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		time.Sleep(pause)
	}
}
