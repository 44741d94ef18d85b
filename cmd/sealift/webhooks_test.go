package main

import (
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/server"
)

func TestReportsAreConfigured(t *testing.T) {
	for name, tt := range map[string]struct {
		c    reportsConfig
		want server.Reports
		err  string
	}{
		"nothing":              {reportsConfig{}, server.Reports{}, ""},
		"off":                  {reportsConfig{Every: "off"}, server.Reports{Every: -1}, ""},
		"off, with a deadline": {reportsConfig{Every: "off", Deadline: "x"}, server.Reports{Every: -1}, ""},
		"both":                 {reportsConfig{Every: "5m", Deadline: "1h"}, server.Reports{Every: 5 * time.Minute, Deadline: time.Hour}, ""},
		"one":                  {reportsConfig{Every: "1ns"}, server.Reports{Every: 1}, ""},
		"the other":            {reportsConfig{Deadline: "1h"}, server.Reports{Deadline: time.Hour}, ""},
		"no duration":          {reportsConfig{Every: "10"}, server.Reports{}, `reports.every is "10"`},
		"zero":                 {reportsConfig{Every: "0s"}, server.Reports{}, `reports.every is "0s"`},
		"negative":             {reportsConfig{Every: "5m", Deadline: "-1h"}, server.Reports{Every: 5 * time.Minute}, `reports.deadline is "-1h"`},
		"a deadline of off":    {reportsConfig{Deadline: "off"}, server.Reports{}, `reports.deadline is "off"`},
	} {
		got, err := tt.c.value()
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: got %+v, %v; want %+v, %q", name, got, err, tt.want, tt.err)
		}
	}
}

// A receiver whose secrets or authorities cannot be had is an error that names it:
// events are not sent unsigned, and the system's authorities do not take the place of
// its own.
func TestReceiversOfEventsAreReadFromFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	receiver := httptest.NewTLSServer(nil)
	defer receiver.Close()
	secret := file("secret", []byte("a text of more than 24 bytes\nanother text of some 24 bytes\n"))
	ca := file("ca", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: receiver.Certificate().Raw}))
	good := webhookConfig{URL: "https://a", SecretFile: secret, CA: ca, Events: []string{"alarm"}}

	all, err := readWebhooks([]webhookConfig{good, {URL: "https://b", SecretFile: secret}})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d receivers, %v", len(all), err)
	}
	if a := all[0]; a.URL != "https://a" || !slices.Equal(a.Events, []string{"alarm"}) || len(a.Secrets) != 2 || a.CA == nil || a.CA.Equal(all[1].CA) {
		t.Errorf("the first is %+v", a)
	}
	if b := all[1]; b.URL != "https://b" || b.Events != nil || len(b.Secrets) != 2 || b.CA != nil {
		t.Errorf("the second is %+v", b)
	}
	if all, err := readWebhooks(nil); all != nil || err != nil {
		t.Errorf("of none: %v, %v", all, err)
	}
	for name, tt := range map[string]struct {
		change func(*webhookConfig)
		want   string
		usage  bool // that something is wrong with what is written, not with the disk
	}{
		"no file of secrets":       {func(c *webhookConfig) { c.SecretFile = filepath.Join(dir, "none") }, "webhooks[1].secretFile: ", false},
		"none named":               {func(c *webhookConfig) { c.SecretFile = "" }, "webhooks[1].secretFile: ", false},
		"an empty one":             {func(c *webhookConfig) { c.SecretFile = file("empty", nil) }, "webhooks[1].secretFile " + dir, true},
		"a short secret":           {func(c *webhookConfig) { c.SecretFile = file("short", []byte("secret\n")) }, "webhooks[1].secretFile " + dir, true},
		"too large":                {func(c *webhookConfig) { c.SecretFile = file("large", make([]byte, maxSmall+1)) }, "webhooks[1].secretFile: ", false},
		"no file of authorities":   {func(c *webhookConfig) { c.CA = filepath.Join(dir, "none") }, "webhooks[1].ca: ", false},
		"one without certificates": {func(c *webhookConfig) { c.CA = secret }, "webhooks[1].ca: " + secret + " holds no certificate", true},
		"one that is cut":          {func(c *webhookConfig) { c.CA = file("cut", []byte("-----BEGIN CERTIFICATE-----\nMIIB")) }, "holds no certificate", true},
	} {
		bad := good
		tt.change(&bad)
		all, err := readWebhooks([]webhookConfig{good, bad})
		if all != nil || err == nil || !strings.Contains(err.Error(), tt.want) || errors.As(err, new(usage)) != tt.usage {
			t.Errorf("%s: %d receivers, %v; want %q, usage %t", name, len(all), err, tt.want, tt.usage)
		}
		if err != nil && strings.Contains(err.Error(), "a text of more") {
			t.Errorf("%s: the error has the secret: %v", name, err)
		}
		if strings.HasPrefix(name, "no file") && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want %v", name, err, fs.ErrNotExist)
		}
	}
}
