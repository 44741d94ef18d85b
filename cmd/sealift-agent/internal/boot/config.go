package boot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/sealift/sealift/profiles"
)

// maxConfig bounds the agent's configuration, in bytes.
const maxConfig = 1 << 20

// ReadConfig reads the configuration that the builder put into the initramfs.
func ReadConfig() (*profiles.AgentConfig, error) {
	b, err := os.ReadFile(profiles.AgentConfigPath)
	if err != nil {
		return nil, fmt.Errorf("read the agent's configuration: %w", err)
	}
	return ParseConfig(b)
}

// ParseConfig reads a configuration strictly: an unknown field or mode, or
// one without what its mode needs, is an error.
func ParseConfig(b []byte) (*profiles.AgentConfig, error) {
	if len(b) > maxConfig {
		return nil, fmt.Errorf("agent configuration: %d bytes, at most %d allowed", len(b), maxConfig)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var c profiles.AgentConfig
	if err := d.Decode(&c); err != nil {
		return nil, fmt.Errorf("agent configuration: %w", err)
	}
	type field struct{ name, value string }
	need := []field{{"image", c.Image}}
	switch c.Mode {
	case profiles.ModeBoot:
		need = append(need, field{"attestURL", c.AttestURL}, field{"attestCA", c.AttestCA},
			field{"releaseKey", c.ReleaseKey}, field{"pcrKey", c.PCRKey})
	case profiles.ModeInstall:
		need = append(need, field{"imageKey", c.ImageKey})
	default:
		return nil, fmt.Errorf("agent configuration: mode is %q, want %q or %q", c.Mode, profiles.ModeBoot, profiles.ModeInstall)
	}
	for _, f := range need {
		if f.value == "" {
			return nil, fmt.Errorf("agent configuration: %s is missing in mode %s", f.name, c.Mode)
		}
	}
	return &c, nil
}
