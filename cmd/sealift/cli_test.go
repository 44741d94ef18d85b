package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign"
)

func TestMain(m *testing.M) {
	testscript.Main(cleaning{m}, map[string]func(){
		"sealift": main,
	})
}

// cleaning removes what tests share.
type cleaning struct{ *testing.M }

func (c cleaning) Run() int {
	code := c.M.Run()
	if sharedDir != "" {
		if err := os.RemoveAll(sharedDir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return max(code, 1)
		}
	}
	return code
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("XDG_CACHE_HOME", filepath.Join(e.WorkDir, "cache"))
			logs, err := filepath.Abs("../../testdata/eventlogs")
			e.Setenv("LOGS", logs)
			return err
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": scriptExits, "mode": scriptMode, "mkimage": scriptImage, "mkdisk": scriptDisk, "mklog": scriptLog, "flipbyte": scriptFlip,
		},
		Condition: func(cond string) (bool, error) {
			if file, ok := strings.CutPrefix(cond, "file:"); ok {
				_, err := os.Stat(file)
				if err != nil && os.Getenv("REQUIRE_TOOLS") != "" {
					return false, fmt.Errorf("%w, and REQUIRE_TOOLS is set", err)
				}
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

// scriptExits runs a program in the foreground and holds its exit code against
// the first argument: "exits 2 sealift keys".
func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("%s exited with %s, want %s", strings.Join(args[1:], " "), got, args[0])
	}
	if stderr := ts.ReadFile("stderr"); got != "0" && !strings.HasPrefix(stderr, "sealift: error: ") && !strings.Contains(stderr, `"event":"error"`) {
		ts.Fatalf("the error begins otherwise: %q", stderr)
	} else if text, ok := strings.CutPrefix(stderr, "sealift: error: "); ok && strings.ToLower(text[:1]) != text[:1] {
		ts.Fatalf("the error begins with an upper-case letter: %q", text)
	}
}

// scriptMode holds the mode of files against the first argument: "mode 0600 a b".
func scriptMode(ts *testscript.TestScript, neg bool, args []string) {
	for _, file := range args[1:] {
		info, err := os.Stat(ts.MkAbs(file))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", file, got, args[0])
		}
	}
}

// scriptImage makes a tiny image, signed with a key directory: "mkimage KEYS DIR".
func scriptImage(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(makeImage(ts.MkAbs(args[0]), ts.MkAbs(args[1])))
}

// makeImage writes a manifest with two artifacts and its signature. It boots
// nothing: there is no kernel in it.
func makeImage(keys, dir string) error {
	ring, err := keyring.Open(keys)
	if err != nil {
		return err
	}
	key, err := ring.Image()
	if err != nil {
		return err
	}
	signer, err := sign.FromKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	m := &manifest.Manifest{
		Schema: manifest.Schema, Name: "tiny", Version: "1", Arch: "amd64",
		Disk: manifest.Disk{Size: 4096, ChunkSize: 4096, Chunks: make([]manifest.SHA256, 1)},
	}
	for kind, name := range map[string]string{manifest.KindDisk: image.FileDisk, manifest.KindUKI: image.FileUKI} {
		content := []byte("the bytes of " + name)
		m.Artifacts = append(m.Artifacts, manifest.Artifact{Kind: kind, Name: name, Size: int64(len(content)), SHA256: sha256.Sum256(content)})
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	b, err := m.Encode()
	if err != nil {
		return err
	}
	sig, err := signer.Sign(context.Background(), b)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, image.FileManifest), b, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, image.FileBundle), sig, 0o644)
}

// scriptLog writes an audit log of three entries without a signed head, and one with
// it as FILE.signed, by the key of which FILE.pub is the public half: "mklog FILE".
func scriptLog(ts *testscript.TestScript, neg bool, args []string) {
	var head audit.Head
	var log []byte
	for i := range 3 {
		e, err := audit.Next(head, audit.Event{
			Time: time.Unix(int64(i), 0), Kind: audit.KindChallengeRefused,
			Data: audit.ChallengeRefused{Reason: "too many", Address: fmt.Sprintf("192.0.2.%d", i)},
		})
		ts.Check(err)
		log, err = audit.AppendLine(log, e)
		ts.Check(err)
		head = e.Head()
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), log, 0o644))
	ts.Setenv("HEAD", head.Hash.String())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644))
	signed, err := audit.Sign(key, audit.HeadType, audit.HeadStatement{Head: head, Time: time.Unix(9, 0).UTC()})
	ts.Check(err)
	log, err = audit.AppendSigned(log, signed)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".signed"), log, 0o644))
}

// scriptFlip changes one bit of the first byte of a file: "flipbyte FILE".
func scriptFlip(ts *testscript.TestScript, neg bool, args []string) {
	b := []byte(ts.ReadFile(args[0]))
	b[0] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

// each calls f for a command and all that it holds, but not for what cobra adds.
func each(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		if c.Name() != "completion" {
			each(c, f)
		}
	}
}

func TestEveryHelpHasAnExampleAndTheExitStatus(t *testing.T) {
	var n int
	each(newRootCommand(&env{}), func(cmd *cobra.Command) {
		n++
		var out, talk strings.Builder
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		if code := run(t.Context(), env{in: strings.NewReader(""), out: &out, err: &talk}, args); code != exitOK || talk.Len() > 0 {
			t.Errorf("%s --help: exit %d, stderr %q", cmd.CommandPath(), code, &talk)
		}
		for _, want := range []string{"\nExample:\n  sealift ", "\nEXIT STATUS\n  0  ", "\nUsage:\n"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s --help: has no %q", cmd.CommandPath(), want)
			}
		}
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || !strings.HasSuffix(strings.SplitN(cmd.Long, "\n\n", 2)[0], ".") {
			t.Errorf("%s: Short is a phrase without a full stop, Long begins with sentences: %q", cmd.CommandPath(), cmd.Short)
		}
	})
	if n < 25 {
		t.Errorf("only %d commands were seen", n)
	}
}

func TestWrongArgumentsAreTheCallersFault(t *testing.T) {
	each(newRootCommand(&env{}), func(cmd *cobra.Command) {
		path := strings.Fields(cmd.CommandPath())[1:]
		for _, tail := range [][]string{{"a", "b", "c"}, {"--no-such-flag"}} {
			var talk strings.Builder
			args := append(append([]string{}, path...), tail...)
			code := run(t.Context(), env{in: strings.NewReader(""), out: &strings.Builder{}, err: &talk}, args)
			if code != exitUsage || !strings.HasPrefix(talk.String(), "sealift: error: ") || !strings.Contains(talk.String(), "\nsealift: hint: ") {
				t.Errorf("sealift %s: exit %d, stderr %q", strings.Join(args, " "), code, &talk)
			}
		}
	})
}

func TestAnInterruptionIsSaidPlainly(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var talk strings.Builder
	e := env{err: &talk}
	if code := e.fail(ctx, fmt.Errorf("fetch: %w", context.Canceled)); code != exitFailed || talk.String() != "sealift: error: interrupted\n" {
		t.Errorf("exit %d, %q", code, &talk)
	}
}

func TestAFailedWriteLeavesTheOldFileAlone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := replaceFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(filepath.Join(file, "x"), nil, 0o600); err == nil {
		t.Error("wrote below a file")
	}
	err := writeFile(file, 0o600, func(w io.Writer) error {
		if _, err := w.Write([]byte("half")); err != nil {
			return err
		}
		return context.Canceled
	})
	if err == nil {
		t.Error("no error")
	}
	if b, _ := os.ReadFile(file); string(b) != "old" {
		t.Errorf("the file holds %q", b)
	}
	if all, _ := os.ReadDir(dir); len(all) != 1 {
		t.Errorf("left behind: %v", all)
	}
}

func TestClaimedTextCannotSteerATerminal(t *testing.T) {
	if got := plain("2.0\x1b[2J\n\u202eé"); got != "2.0?[2J??é" {
		t.Errorf("got %q", got)
	}
}
