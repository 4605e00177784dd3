# bash completion of lorasweep:  source <(lorasweep completion bash)
_lorasweep() {
    local line="${COMP_LINE:0:COMP_POINT}" current candidate cut=""
    local -a words
    read -ra words <<< "$line"                              # whole words: COMP_WORDS is cut at = and :
    [[ $line == *[[:space:]] ]] && words+=("")
    current="${words[-1]}"
    [[ $COMP_WORDBREAKS == *=* && $current == *=* ]] && cut="${current%"${current##*=}"}"
    [[ $COMP_WORDBREAKS == *:* && ${current#"$cut"} == *:* ]] && cut="${current%"${current##*:}"}"
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$cut"}")
        [[ $candidate == *[=.] ]] && compopt -o nospace 2> /dev/null
    done < <("${words[0]/#\~/$HOME}" __complete "${words[@]:1}" 2> /dev/null)
}
complete -o default -F _lorasweep lorasweep
