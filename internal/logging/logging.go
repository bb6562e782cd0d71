// Package logging makes kekd's logger: JSON or console lines on standard error,
// a level that can change at run time, and an unsampled logger for what must
// never be dropped.
//
// Levels: debug for requests, info for changes of state only, warn for degraded
// but serving, error for what someone must act on. Fields are typed; a request
// is known by its uid, a key by its key_id.
package logging

import (
	"fmt"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Sampling of the main logger: of the entries with one level and one message, the
// first so many of each second are written, then every so many-th. A client that
// retries a hundred times a second must not fill the node's disk.
const (
	sampleFirst = 50
	sampleThen  = 100
)

// Loggers are the two ways to log, to the same place.
type Loggers struct {
	// Log is for everything but audit events. It drops repetitions.
	Log *zap.Logger
	// Audit is for events that must all be found later: a key created or
	// revoked, a login refused, a caller turned away. It drops no repetitions, its
	// level does not follow Level, info and above are always written, and in a Queue
	// there is room for it when ordinary lines find none.
	Audit *zap.Logger
	// Level is the level of Log and can be set at any time.
	Level zap.AtomicLevel
}

// New makes the loggers. level is debug, info, warn or error, format is json or
// console; out must be safe for concurrent use, as a Queue is, or what zapcore.Lock
// makes.
func New(level, format string, out zapcore.WriteSyncer) (Loggers, error) {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil {
		return Loggers{}, fmt.Errorf("log.level: %w", err)
	}
	encoder, err := newEncoder(format)
	if err != nil {
		return Loggers{}, err
	}
	audit := out
	if q, ok := out.(*Queue); ok {
		audit = auditQueue{q}
	}
	atomic := zap.NewAtomicLevelAt(parsed)
	sampled := zapcore.NewSamplerWithOptions(
		zapcore.NewCore(encoder, out, atomic), time.Second, sampleFirst, sampleThen)
	return Loggers{
		Log:   zap.New(sampled, zap.ErrorOutput(out)),
		Audit: zap.New(zapcore.NewCore(encoder, audit, zap.InfoLevel), zap.ErrorOutput(out)).Named("audit"),
		Level: atomic,
	}, nil
}

func newEncoder(format string) (zapcore.Encoder, error) {
	config := zapcore.EncoderConfig{
		TimeKey:        "ts",
		LevelKey:       "level",
		NameKey:        "logger",
		MessageKey:     "msg",
		StacktraceKey:  "stack",
		LineEnding:     zapcore.DefaultLineEnding,
		EncodeTime:     zapcore.RFC3339NanoTimeEncoder,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder,
	}
	switch format {
	case "json":
		return zapcore.NewJSONEncoder(config), nil
	case "console":
		return zapcore.NewConsoleEncoder(config), nil
	}
	return nil, fmt.Errorf("log.format: must be one of json, console, got %q", format)
}
