package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

func (s *scene) operatorClient() *operator.Client {
	s.Helper()
	c, err := operator.New(operator.Config{
		URL: "https://" + s.operators, CA: s.pool(),
		Certificate: s.certificate(pkix.Name{CommonName: "bob", Organization: []string{api.OperatorOrganization}, OrganizationalUnit: []string{"operator", "approver", "auditor", "unheard-of"}}, x509.ExtKeyUsageClientAuth),
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(c.Close)
	return c
}

func TestTheOperatorsClientDoesWhatTheAPICan(t *testing.T) {
	s := newScene(t, func(c *server.Config) {
		c.Campaigns = func(operator string, w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			switch {
			case r.Method == "POST":
				w.Write(body)
			case r.URL.Path == api.PathCampaigns:
				w.Write([]byte(`[{"name":"bios"}]`))
			default:
				w.Write([]byte(`{"name":"` + r.URL.Path[len(api.PathCampaigns)+1:] + `"}`))
			}
		}
	})
	c, ctx := s.operatorClient(), t.Context()
	b := newBox(t, s.tpmCA)
	m, err := c.Install(ctx, record(b))
	if err != nil || m.ID != b.id {
		t.Fatalf("install: %+v, %v", m, err)
	}
	s.attest(b)
	if m, err = c.Revoke(ctx, b.id, "stolen"); err != nil || m.State != attest.StateRevoked || m.Reason != "stolen" {
		t.Errorf("revoke: %+v, %v", m, err)
	}
	if m, err = c.Reinstate(ctx, b.id, "found"); err != nil || m.State != attest.StateEnrolled {
		t.Errorf("reinstate: %+v, %v", m, err)
	}
	if m, err = c.Machine(ctx, b.id); err != nil || m.NodeName == "" {
		t.Errorf("machine: %+v, %v", m, err)
	}
	pending := newBox(t, s.tpmCA)
	s.attest(pending)
	if m, err = c.Approve(ctx, pending.id, "known"); err != nil || m.State != attest.StateEnrolled {
		t.Errorf("approve: %+v, %v", m, err)
	}
	ms, err := c.Machines(ctx, attest.StateUnknown)
	if err != nil || len(ms) != 2 {
		t.Errorf("machines: %+v, %v", ms, err)
	}
	if ms, err = c.Machines(ctx, attest.StateRevoked); err != nil || len(ms) != 0 {
		t.Errorf("revoked machines: %+v, %v", ms, err)
	}

	var v audit.Verifier
	var evidence manifest.SHA256
	for e, err := range c.Audit(ctx, 1, attest.MachineID{}) {
		if err == nil {
			err = v.Add(e)
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindVerdict {
			var d audit.Verdict
			if err := json.Unmarshal(e.Data, &d); err != nil {
				t.Fatal(err)
			}
			evidence = d.Evidence
		}
	}
	if v.Head().Seq < 8 {
		t.Errorf("the log ends at %d", v.Head().Seq)
	}
	n := 0
	for _, err := range c.Audit(ctx, 1, pending.id) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 4 { // verdict, pending, the alarm for another's disk, approved
		t.Errorf("%d entries of one machine, want 4", n)
	}
	if stored, err := c.Evidence(ctx, evidence); err != nil || digest(stored) != evidence {
		t.Errorf("evidence: %v", err)
	}

	if all, err := c.Campaigns(ctx); err != nil || len(all) != 1 {
		t.Errorf("campaigns: %s, %v", all, err)
	}
	if one, err := c.Campaign(ctx, "bios"); err != nil || !bytes.Contains(one, []byte("bios")) {
		t.Errorf("campaign: %s, %v", one, err)
	}
	if posted, err := c.PostCampaign(ctx, map[string]string{"name": "x"}); err != nil || string(posted) != `{"name":"x"}` {
		t.Errorf("post campaign: %s, %v", posted, err)
	}

	var failed *operator.Error
	if _, err := c.Machine(ctx, attest.MachineID{1}); !errors.As(err, &failed) || failed.Status != 404 || failed.Answer.Code != "not-found" {
		t.Errorf("an unknown machine: %v", err)
	}
	if _, err := c.Revoke(ctx, b.id, ""); !errors.As(err, &failed) || failed.Status != 400 {
		t.Errorf("no reason: %v", err)
	}
	for _, err := range c.Audit(ctx, 0, attest.MachineID{}) {
		if !errors.As(err, &failed) || failed.Status != 400 {
			t.Errorf("from 0: %v", err)
		}
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.Machines(stopped, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
}

func digest(b []byte) manifest.SHA256 { return manifest.SHA256(attest.MachineIDOf(b)) }

func TestTheOperatorsClientRefusesAnUnsafeConfiguration(t *testing.T) {
	s := newScene(t, nil)
	good := operator.Config{URL: "https://" + s.operators, CA: s.pool(), Certificate: s.certificate(pkixName("x"), x509.ExtKeyUsageClientAuth)}
	for name, change := range map[string]func(*operator.Config){
		"plain HTTP":     func(c *operator.Config) { c.URL = "http://" + s.operators },
		"a path":         func(c *operator.Config) { c.URL += "/x" },
		"a password":     func(c *operator.Config) { c.URL = "https://u:p@" + s.operators },
		"no authority":   func(c *operator.Config) { c.CA = nil },
		"no certificate": func(c *operator.Config) { c.Certificate = tls.Certificate{} },
	} {
		c := good
		change(&c)
		if _, err := operator.New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
