# fish completion of lorasweep:  lorasweep completion fish > ~/.config/fish/completions/lorasweep.fish
function __lorasweep_complete
    set -l words (commandline -opc)
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    set -l current (commandline -ct)
    set -l plain (string unescape -- $current); and set current $plain    # without its opening quote
    set -l found
    command -q $program; and set found ($program __complete $words[2..-1] $current 2> /dev/null)
    if test (count $found) -gt 0
        string join \n -- $found
    else
        __fish_complete_suffix ''
    end
end
complete -c lorasweep -f -a '(__lorasweep_complete)'
