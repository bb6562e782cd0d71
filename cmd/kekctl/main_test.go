package main

import (
	"testing"

	"kekd/internal/cmdtest"
)

func TestMain(m *testing.M) { cmdtest.Main(m, "kekctl", main) }

// TestScripts runs testdata/*.txtar; package cmdtest describes their commands.
func TestScripts(t *testing.T) { cmdtest.Run(t) }
