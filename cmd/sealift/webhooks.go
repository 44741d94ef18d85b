package main

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/sealift/sealift/attest/server"
)

type reportsConfig struct {
	Every    string `yaml:"every"`    // e.g. 10m, which is the default; off: no reports
	Deadline string `yaml:"deadline"` // after which a machine is stale; three times every if left out
}

// value returns what the service is told. It checks the rest.
func (c reportsConfig) value() (server.Reports, error) {
	if c.Every == "off" {
		return server.Reports{Every: -1}, nil
	}
	var r server.Reports
	for _, f := range []struct {
		name, text string
		to         *time.Duration
	}{{"every", c.Every, &r.Every}, {"deadline", c.Deadline, &r.Deadline}} {
		if f.text == "" {
			continue
		}
		d, err := time.ParseDuration(f.text)
		if err != nil || d <= 0 {
			return r, fmt.Errorf("reports.%s is %q, want a duration like 10m", f.name, f.text)
		}
		*f.to = d
	}
	return r, nil
}

// webhookConfig is one receiver of events, see docs/webhooks.md.
type webhookConfig struct {
	URL        string   `yaml:"url"`        // https, or http to loopback
	SecretFile string   `yaml:"secretFile"` // one secret a line: whsec_ and base64, or a text of at least 24 bytes
	Events     []string `yaml:"events"`     // optional: types of events, else the important ones
	CA         string   `yaml:"ca"`         // optional: PEM, in place of the system's authorities
}

// readWebhooks reads the files that the receivers name.
func readWebhooks(configs []webhookConfig) ([]server.Webhook, error) {
	var all []server.Webhook
	for i, c := range configs {
		secret, err := readFile(c.SecretFile, maxSmall)
		if err != nil {
			return nil, fmt.Errorf("webhooks[%d].secretFile: %w", i, err)
		}
		w := server.Webhook{URL: c.URL, Events: c.Events}
		if w.Secrets, err = server.ParseWebhookSecrets(secret); err != nil {
			return nil, usage{fmt.Errorf("webhooks[%d].secretFile %s: %w", i, c.SecretFile, err)}
		}
		if c.CA != "" {
			ca, err := readFile(c.CA, maxSmall)
			if err != nil {
				return nil, fmt.Errorf("webhooks[%d].ca: %w", i, err)
			}
			w.CA = x509.NewCertPool()
			if !w.CA.AppendCertsFromPEM(ca) {
				return nil, usage{fmt.Errorf("webhooks[%d].ca: %s holds no certificate", i, c.CA)}
			}
		}
		all = append(all, w)
	}
	return all, nil
}
