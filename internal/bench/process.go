package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of times in /proc/PID/stat: USER_HZ, which is 100 a
// second on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// procStat is what is used of /proc/PID/stat.
type procStat struct {
	parent int
	cpu    time.Duration // user and system
}

// parseStat reads /proc/PID/stat, proc(5). The second field is the program's
// name in brackets, which may hold anything.
func parseStat(text string) (procStat, error) {
	end := strings.LastIndexByte(text, ')')
	fields := strings.Fields(text[end+1:])
	if end < 0 || len(fields) < 13 {
		return procStat{}, fmt.Errorf("%q is no line of /proc/PID/stat", text)
	}
	var n [3]int
	for i, at := range []int{1, 11, 12} { // ppid, utime, stime
		v, err := strconv.Atoi(fields[at])
		if err != nil {
			return procStat{}, fmt.Errorf("read /proc/PID/stat: %w", err)
		}
		n[i] = v
	}
	return procStat{parent: n[0], cpu: time.Duration(n[1]+n[2]) * clockTick}, nil
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(string(b))
}

// childrenOf lists the processes that a process started and that still run.
func childrenOf(pid int) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var children []int
	for _, dir := range dirs {
		other, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		// One that has just ended has no children of interest.
		if stat, err := readStat(other); err == nil && stat.parent == pid {
			children = append(children, other)
		}
	}
	return children, nil
}

// cpuOf is the processor time that some processes have used so far.
func cpuOf(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		stat, err := readStat(pid)
		if err != nil {
			return 0, fmt.Errorf("read the processor time: %w", err)
		}
		sum += stat.cpu
	}
	return sum, nil
}

// memory is a process's resident memory in bytes: now, and the most it ever was.
type memory struct {
	Now  int64 `json:"nowBytes"`
	Peak int64 `json:"peakBytes"`
}

func memoryOf(pid int) (memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	return parseStatus(string(b))
}

// parseStatus reads /proc/PID/status.
func parseStatus(text string) (memory, error) {
	var m memory
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		var to *int64
		switch name {
		case "VmRSS":
			to = &m.Now
		case "VmHWM":
			to = &m.Peak
		default:
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return memory{}, fmt.Errorf("read /proc/PID/status: %w", err)
		}
		*to = kib << 10
	}
	if m.Now == 0 || m.Peak == 0 {
		return memory{}, fmt.Errorf("/proc/PID/status tells no resident memory")
	}
	return m, nil
}
