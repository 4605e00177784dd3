# fish completion of lorasweep:  lorasweep completion fish > ~/.config/fish/completions/lorasweep.fish
function __lorasweep_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l found ($words[1] __complete $words[2..-1] 2> /dev/null)
    if test (count $found) -gt 0
        string join \n -- $found
    else
        __fish_complete_suffix ''
    end
end
complete -c lorasweep -f -a '(__lorasweep_complete)'
