package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

type shut struct{}

func (shut) Write([]byte) (int, error) { return 0, errors.New("no space left") }

// TestNagiosUnprinted: a plugin whose line is lost says unknown by its status.
func TestNagiosUnprinted(t *testing.T) {
	var stderr bytes.Buffer
	e := &env{stdin: strings.NewReader(""), stdout: shut{}, stderr: &stderr, euid: 1000}
	if status := run(context.Background(), []string{"drift", "--format", "nagios"}, e); status != 3 || !strings.Contains(stderr.String(), "no space left") {
		t.Errorf("exit status %d, want 3\n%s", status, stderr.String())
	}
}
