package inputs

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sealift/sealift/profiles"
)

// maxChannel bounds what a channel answers, in bytes. GitHub's list of 100
// releases has some 4 MB, with the description of each.
const maxChannel = 32 << 20

// parseChannel returns the versions that a channel names, as far as they are of
// the release. What else it names, such as candidates, is left out.
func parseChannel(kind string, b []byte, r *profiles.Release) ([]string, error) {
	var names []string
	switch kind {
	case profiles.ChannelText:
		names = []string{strings.TrimSpace(string(b))}
		if !r.Matches(names[0]) {
			return nil, fmt.Errorf("%.100q is not a version", names[0])
		}
	case profiles.ChannelChannels:
		var answer struct {
			Data []struct {
				Latest string `json:"latest"`
			} `json:"data"`
		}
		if err := json.Unmarshal(b, &answer); err != nil {
			return nil, err
		}
		for _, c := range answer.Data {
			names = append(names, c.Latest)
		}
	case profiles.ChannelGitHub:
		var answer []struct {
			Tag        string `json:"tag_name"`
			Draft      bool   `json:"draft"`
			Prerelease bool   `json:"prerelease"`
		}
		if err := json.Unmarshal(b, &answer); err != nil {
			return nil, err
		}
		for _, c := range answer {
			if !c.Draft && !c.Prerelease {
				names = append(names, c.Tag)
			}
		}
	default:
		return nil, fmt.Errorf("channel of unknown kind %q", kind)
	}
	names = slices.DeleteFunc(names, func(v string) bool { return !r.Matches(v) })
	if len(names) == 0 {
		return nil, fmt.Errorf("no version among %d bytes matches %s", len(b), r.Versions)
	}
	return names, nil
}

// newest returns the newest of the versions with the same first two numbers as
// the given one, and the newest of all. Both are the given one if nothing is
// newer.
func newest(version string, all []string) (patch, latest string) {
	patch, latest = version, version
	for _, v := range all {
		if compareVersions(v, latest) > 0 {
			latest = v
		}
		if profiles.Minor(v) == profiles.Minor(version) && compareVersions(v, patch) > 0 {
			patch = v
		}
	}
	return patch, latest
}

// compareVersions compares two versions of one release by the numbers in them:
// v1.34.10+k3s1 is newer than v1.34.9+k3s2. The release's pattern holds that
// both have the same form.
func compareVersions(a, b string) int { return slices.CompareFunc(numbers(a), numbers(b), cmp.Compare) }

func numbers(v string) []int {
	var out []int
	for _, s := range strings.FieldsFunc(v, func(r rune) bool { return r < '0' || r > '9' }) {
		n, err := strconv.Atoi(s)
		if err != nil {
			n = 0 // longer than any number of a version
		}
		out = append(out, n)
	}
	return out
}
