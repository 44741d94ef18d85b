package main

import (
	"context"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/inspect/inspecttest"
)

// scriptDisk builds a small but complete image, signed with a key directory:
// "mkdisk [-debug] KEYS DIR [PARAMETER...]". With kernel parameters, it also
// has another file. The environment variable OUTPUTS chooses outputs.
func scriptDisk(ts *testscript.TestScript, neg bool, args []string) {
	debug := len(args) > 0 && args[0] == "-debug"
	if debug {
		args = args[1:]
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mkdisk [-debug] KEYS DIR [PARAMETER...]")
	}
	ring, err := keyring.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	keys := &inspecttest.Keys{Auth: map[efivar.Variable][]byte{}}
	keys.DB, err = ring.DB()
	ts.Check(err)
	keys.Enrolment, err = ring.Enrolment()
	ts.Check(err)
	for _, v := range []efivar.Variable{efivar.PK, efivar.KEK, efivar.DB} {
		keys.Auth[v], err = ring.Auth(v)
		ts.Check(err)
	}
	keys.PCR, err = ring.PCR()
	ts.Check(err)
	keys.Image, err = ring.Image()
	ts.Check(err)
	input := keys.Input
	if debug {
		input = keys.DebugInput
	}
	in, err := input(ts.MkAbs(args[1]))
	ts.Check(err)
	if len(args) > 2 {
		in.Profile.Kernel.Cmdline = args[2:]
		ts.Check(in.Root.WriteFile("etc/more", []byte("more"), 0o644))
	}
	if names := ts.Getenv("OUTPUTS"); names != "" {
		in.Outputs, err = image.ParseOutputs(strings.Split(names, ","))
		ts.Check(err)
	}
	_, err = image.Build(context.Background(), *in)
	ts.Check(err)
}
